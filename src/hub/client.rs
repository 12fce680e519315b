//! The two questions that the Hub is asked: which files a model has, and the bytes of one from somewhere on. In: an endpoint, perhaps
//! a key. Out: answers, or why there are none.

use std::{io::Read, sync::Arc, time::Duration};

use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{Response, StatusCode, header},
    tls::{RootCerts, TlsConfig},
};

use super::{HubError, Source};

const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(60);
/// One answer's bytes: after that they are asked for anew from where they ended, so that a line that went silent does not hold for
/// ever.
const BODY: Duration = Duration::from_secs(600);
/// A list of files is never longer.
const LIST_MAX: u64 = 16 << 20;

/// Where the Hub is, and how this person is known there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: String,
    pub token: Option<String>,
}

impl Endpoint {
    /// As the programs of its makers are told: `HF_ENDPOINT`, `HF_TOKEN`.
    pub fn of_environment() -> Self {
        let set = |name: &str| {
            std::env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
        };
        let url = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Endpoint { url: url.trim_end_matches('/').into(), token: set("HF_TOKEN") }
    }
}

pub struct Client {
    endpoint: Endpoint,
    agent: Agent,
}

/// What the Hub says of a model.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// The commit that the revision is now.
    pub sha: Option<String>,
    #[serde(default)]
    pub siblings: Vec<Sibling>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Sibling {
    #[serde(rename = "rfilename")]
    pub name: String,
    pub size: Option<u64>,
    pub lfs: Option<Large>,
}

/// A file that is kept apart, by the hash of its content.
#[derive(Clone, Debug, Deserialize)]
pub struct Large {
    pub sha256: Option<String>,
    pub size: Option<u64>,
}

/// Bytes of a file that come.
pub struct Coming {
    /// Of the first byte in the file.
    pub from: u64,
    pub bytes: Box<dyn Read>,
}

impl Client {
    pub fn new(endpoint: Endpoint) -> Client {
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .user_agent(concat!("skein/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(BODY));
        Client { endpoint, agent: config.build().into() }
    }

    pub fn url(&self) -> &str {
        &self.endpoint.url
    }

    /// # Errors
    /// Nobody answers, the model is not there, or not for this person.
    pub fn list(&self, source: &Source) -> Result<Listing, HubError> {
        let path = format!("/api/models/{}/revision/{}?blobs=true", source.id(), source.revision);
        let mut response = self.get(&path, 0, source)?;
        let read = response.body_mut().with_config().limit(LIST_MAX).read_json();
        read.map_err(|error| self.unreachable(&format!("it answers otherwise than the Hub does: {error}")))
    }

    /// # Errors
    /// As [`Client::list`].
    pub fn fetch(&self, source: &Source, commit: &str, file: &str, from: u64) -> Result<Coming, HubError> {
        let response = self.get(&format!("/{}/resolve/{commit}/{file}", source.id()), from, source)?;
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => from,
            _ => 0,
        };
        Ok(Coming { from: begins, bytes: Box::new(response.into_body().into_reader()) })
    }

    fn get(&self, path: &str, from: u64, source: &Source) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(format!("{}{path}", self.endpoint.url));
        if let Some(token) = &self.endpoint.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = request.call().map_err(|error| self.unreachable(&error.to_string()))?;
        let model = source.to_string();
        let refused = |why: &str| Err(HubError::Refused { model: model.clone(), why: why.into() });
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED if self.endpoint.token.is_none() => {
                refused("it is private, gated, or not there, and no HF_TOKEN is set")
            }
            StatusCode::UNAUTHORIZED => refused("the HF_TOKEN is not taken, or the model is not there"),
            StatusCode::FORBIDDEN => {
                refused("its owner has to allow it first: ask on its page, with the account of HF_TOKEN")
            }
            StatusCode::NOT_FOUND => Err(HubError::Unknown { model }),
            status => Err(self.unreachable(&format!("it answers {status}"))),
        }
    }

    fn unreachable(&self, why: &str) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.url.clone(), why: why.into() }
    }
}
