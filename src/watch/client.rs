//! The other side of the control server: what `status`, `peers`, `stop`, `invite`, `generate` and `export` ask. Blocking, since a
//! command asks one thing and waits. In: the control file of a home. Out: typed answers.

use std::{
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body,
    http::{Response, StatusCode},
};

use super::{
    order::{ExportNote, ExportRequest, GenerateRequest, Made, Piece, Refusal},
    state::{PeerState, State},
};
use crate::home::Control;

const CONNECT: Duration = Duration::from_secs(2);
/// A peer answers at once; one that does not is in trouble.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no peer is running: {} {why}", control.display())]
    NobodyHere { control: PathBuf, why: String },
    #[error("process {pid} does not answer within {} s", ANSWER.as_secs())]
    Silent { pid: u32 },
    #[error("an answer that cannot be read: {0}")]
    Garbled(String),
    #[error("the answer ended: {0}")]
    Interrupted(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

pub struct Client {
    /// As its file said last: a peer that was started again has another.
    control: Mutex<Control>,
    /// Where the address came from.
    file: PathBuf,
    quick: Agent,
    patient: Agent,
}

impl Client {
    /// # Errors
    /// [`ClientError::NobodyHere`] when there is no control file; whether its peer still lives shows the first question.
    pub fn find(file: &Path) -> Result<Client, ClientError> {
        let control = Control::read(file).ok_or_else(|| ClientError::NobodyHere {
            control: file.into(),
            why: if file.exists() { "cannot be read" } else { "is missing" }.into(),
        })?;
        // A proxy of the environment has no business with this machine.
        let agent = |answer| {
            Agent::config_builder()
                .proxy(None)
                .http_status_as_error(false)
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(answer)
                .build()
                .into()
        };
        Ok(Client { control: Mutex::new(control), file: file.into(), quick: agent(Some(ANSWER)), patient: agent(None) })
    }

    /// Process id of the peer.
    pub fn pid(&self) -> u32 {
        self.control().pid
    }

    fn control(&self) -> Control {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks once more where the peer was started again meanwhile.
    fn asked(
        &self,
        ask: impl Fn(&Control) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ClientError> {
        let control = self.control();
        let answer = self.checked(&control, ask(&control));
        if !matches!(answer, Err(ClientError::NobodyHere { .. })) {
            return answer;
        }
        match Control::read(&self.file).filter(|now| *now != control) {
            None => answer,
            Some(now) => {
                *self.control.lock().unwrap_or_else(PoisonError::into_inner) = now.clone();
                self.checked(&now, ask(&now))
            }
        }
    }

    pub fn state(&self) -> Result<State, ClientError> {
        self.get("/api/v1/state")
    }

    pub fn peers(&self) -> Result<Vec<PeerState>, ClientError> {
        self.get("/api/v1/peers")
    }

    pub fn config(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/api/v1/config")
    }

    /// Asks the peer to drain and end, or to end `now`. Returns when it has heard.
    pub fn stop(&self, now: bool) -> Result<(), ClientError> {
        self.post(&self.quick, "/api/v1/stop", &serde_json::json!({ "now": now })).map(|_| ())
    }

    pub fn invite(&self) -> Result<Made, ClientError> {
        read(self.post(&self.quick, "/api/v1/invite", &serde_json::json!({}))?)
    }

    /// Hands each piece to `each` as it comes; the last is [`Piece::End`].
    pub fn generate(&self, request: &GenerateRequest, each: impl FnMut(Piece)) -> Result<(), ClientError> {
        let response = self.post(&self.patient, "/api/v1/generate", request)?;
        lines(response, |piece| matches!(piece, Piece::End(_)), each)
    }

    /// As [`Client::generate`], until `each` says `false`: then the peer hears that nobody waits any more.
    pub fn generate_while(
        &self,
        request: &GenerateRequest,
        each: impl FnMut(Piece) -> bool,
    ) -> Result<(), ClientError> {
        let response = self.post(&self.patient, "/api/v1/generate", request)?;
        lines_while(response, |piece| matches!(piece, Piece::End(_)), each)
    }

    /// Hands each note to `each` as it comes; the last is [`ExportNote::Done`].
    pub fn export(&self, request: &ExportRequest, each: impl FnMut(ExportNote)) -> Result<(), ClientError> {
        let response = self.post(&self.patient, "/api/v1/export", request)?;
        lines(response, |note| matches!(note, ExportNote::Done { .. }), each)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        read(self.asked(|control| self.quick.get(url(control, path)).header("Authorization", bearer(control)).call())?)
    }

    fn post<T: Serialize>(&self, agent: &Agent, path: &str, body: &T) -> Result<Response<Body>, ClientError> {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        self.asked(|control| {
            let request = agent.post(url(control, path)).header("Authorization", bearer(control));
            request.content_type("application/json").send(&body[..])
        })
    }

    fn unanswered(&self, control: &Control, error: ureq::Error) -> ClientError {
        match error {
            error if is_gone(&error) => ClientError::NobodyHere {
                control: self.file.clone(),
                why: format!("says {}, where nobody answers ({error})", control.address),
            },
            ureq::Error::Timeout(_) => ClientError::Silent { pid: control.pid },
            other => ClientError::Garbled(other.to_string()),
        }
    }

    fn checked(
        &self,
        control: &Control,
        response: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ClientError> {
        let mut response = response.map_err(|error| self.unanswered(control, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            let why = format!("says {}, where another peer answers", control.address);
            return Err(ClientError::NobodyHere { control: self.file.clone(), why });
        }
        match response.body_mut().read_json::<Refusal>() {
            Ok(refusal) => Err(refusal.into()),
            Err(_) => Err(ClientError::Garbled(format!("status {status}"))),
        }
    }
}

fn url(control: &Control, path: &str) -> String {
    let mut address = control.address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}{path}")
}

fn bearer(control: &Control) -> String {
    format!("Bearer {}", control.token)
}

/// A closed door, or one that was shut while we stood in it: the process is gone. Whatever else goes wrong, somebody is there.
fn is_gone(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => {
            matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
        }
        ureq::Error::ConnectionFailed => true,
        _ => false,
    }
}

fn read<T: DeserializeOwned>(mut response: Response<Body>) -> Result<T, ClientError> {
    response.body_mut().read_json().map_err(|error| ClientError::Garbled(error.to_string()))
}

fn lines<T: DeserializeOwned>(
    response: Response<Body>,
    last: impl Fn(&T) -> bool,
    mut each: impl FnMut(T),
) -> Result<(), ClientError> {
    lines_while(response, last, |reply| {
        each(reply);
        true
    })
}

fn lines_while<T: DeserializeOwned>(
    response: Response<Body>,
    last: impl Fn(&T) -> bool,
    mut each: impl FnMut(T) -> bool,
) -> Result<(), ClientError> {
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.map_err(|error| ClientError::Interrupted(error.to_string()))?;
        let reply: Result<T, Refusal> =
            serde_json::from_str(&line).map_err(|error| ClientError::Garbled(error.to_string()))?;
        let reply = reply?;
        let done = last(&reply);
        if !each(reply) || done {
            return Ok(());
        }
    }
    Err(ClientError::Interrupted("the peer ended".into()))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener, thread};

    use super::*;

    /// A client of whoever listens there.
    fn client(listener: &TcpListener) -> (tempfile::TempDir, Client) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("control");
        let control = Control { address: listener.local_addr().unwrap(), token: "x".into(), pid: 7 };
        std::fs::write(&file, serde_json::to_vec(&control).unwrap()).unwrap();
        let mut client = Client::find(&file).unwrap();
        let quick = Agent::config_builder().proxy(None).timeout_recv_response(Some(Duration::from_millis(50)));
        client.quick = quick.build().into();
        (dir, client)
    }

    #[test]
    fn silence_is_another_thing_than_a_closed_door() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_dir, client) = client(&listener);
        // The system accepts the connection; nobody reads from it.
        assert!(matches!(client.state(), Err(ClientError::Silent { pid: 7 })));
        assert!(matches!(client.stop(false), Err(ClientError::Silent { .. })));
        drop(listener);
        assert!(matches!(client.state(), Err(ClientError::NobodyHere { .. })));
    }

    #[test]
    fn who_speaks_another_language_is_somebody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_dir, client) = client(&listener);
        let other = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"220 mail\r\n\r\n").unwrap();
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        assert!(matches!(client.state(), Err(ClientError::Garbled(_))));
        drop(client);
        other.join().unwrap();
    }
}
