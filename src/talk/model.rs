//! A model that can be asked: what is known of it, and the backend that answers.

use std::path::Path;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    ask::{Ask, Backend, Prompt, Said, Trouble},
    batch::Limits,
    folder::{About, Folder, OpenError},
    swarm::Swarm,
};
use crate::{
    text::{ChatTemplate, Message, Tokenizer},
    watch::Client,
};

/// How a conversation becomes a text.
#[derive(Clone, Debug)]
pub enum Template {
    /// The model's own.
    Own(ChatTemplate),
    /// Of whoever asks, for a model without one: `User: …`, `Assistant: …`.
    Plain,
}

pub struct Model {
    pub name: String,
    /// Tokens that it reads, the prompt included; nothing: only the swarm knows.
    pub context: Option<usize>,
    /// Nothing: of a run.
    pub parameters: Option<usize>,
    pub vocabulary: Option<usize>,
    pub template: Option<Template>,
    /// Its folder has no tokenizer: it is read as bytes.
    pub guessed_bytes: bool,
    /// Seconds since 1970.
    pub created: u64,
    pub owner: String,
    /// Changes with the model.
    pub fingerprint: String,
    tokenizer: Option<Tokenizer>,
    backend: Box<dyn Backend>,
}

impl Model {
    /// The model of a folder, loaded. `threads`: at least 1; `limits`: for so many parameters.
    ///
    /// # Errors
    /// The folder is no model that this build can compute, or memory does not suffice.
    pub fn folder(
        path: &Path,
        name: String,
        threads: usize,
        limits: impl FnOnce(usize) -> Limits,
    ) -> Result<Model, OpenError> {
        let (folder, about) = Folder::open(path, threads, limits)?;
        let About { context, parameters, vocabulary, tokenizer, template, guessed, created, fingerprint } = about;
        Ok(Model {
            name,
            context: Some(context),
            parameters: Some(parameters),
            vocabulary: Some(vocabulary),
            template: template.map(Template::Own),
            guessed_bytes: guessed,
            created,
            owner: "local".into(),
            fingerprint,
            tokenizer: Some(tokenizer),
            backend: Box::new(folder),
        })
    }

    /// The run of the peer that `client` asks.
    pub fn swarm(
        client: Client,
        name: String,
        owner: String,
        fingerprint: String,
        context: Option<usize>,
        template: Option<ChatTemplate>,
        limits: Limits,
    ) -> Model {
        Model {
            name,
            context,
            parameters: None,
            vocabulary: None,
            template: template.map(Template::Own),
            guessed_bytes: false,
            created: u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0),
            owner,
            fingerprint,
            tokenizer: None,
            backend: Box::new(Swarm::new(client, context, limits)),
        }
    }

    /// What the model reads of a conversation, up to where its answer begins; and texts at which that answer ends, where the
    /// model does not know this itself.
    ///
    /// # Errors
    /// It has no template, or the template refuses the conversation.
    pub fn chat(&self, messages: &[Message]) -> Result<(Prompt, Vec<String>), Trouble> {
        let now = jiff::Zoned::now().datetime();
        match &self.template {
            None => Err(Trouble::NoTemplate),
            Some(Template::Own(template)) => Ok((Prompt::Rendered(template.render(messages, true, now)?), Vec::new())),
            Some(Template::Plain) => {
                let text = ChatTemplate::plain().render(messages, true, now)?;
                Ok((Prompt::Text(text), vec!["\nUser:".into(), "\nAssistant:".into(), "\nSystem:".into()]))
            }
        }
    }

    /// The text of token ids; nothing where the tokenizer is not known.
    pub fn text_of(&self, tokens: &[u32]) -> String {
        self.tokenizer.as_ref().map_or(String::new(), |tokenizer| tokenizer.decode(tokens, true))
    }

    /// # Errors
    /// What can be said at once; later trouble comes as [`Said::Failed`].
    pub fn ask(&self, ask: Ask) -> Result<UnboundedReceiver<Said>, Trouble> {
        self.backend.ask(ask)
    }
}
