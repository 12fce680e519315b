//! Text from a saved model on this machine: no peer, no network. In: a folder, a prompt. Out: text, piece by piece.

use std::path::Path;

use skein_pipeline::{
    compute::{
        Device, engine,
        hf::{Checkpoint, HfError},
    },
    exact::{Engine, EngineError, Settings, StageInput},
};
use skein_protocol::run::{Arithmetic, Optimizer, OptimizerKind, Recompute, Schedule};

use super::generate::{Sampler, Sampling, Why};
use crate::text::{Special, TextError, Tokenizer};

/// A model in memory, ready to be asked.
pub struct Local {
    engine: Box<dyn Engine>,
    tokenizer: Tokenizer,
    sessions: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    Folder(#[from] HfError),
    #[error("the prompt has {got} tokens, this model reads {context}")]
    TooLong { got: usize, context: usize },
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Local {
    /// `threads`: at least 1.
    ///
    /// # Errors
    /// The folder is no model that this build can compute, or memory does not suffice.
    pub fn open(folder: &Path, threads: usize) -> Result<Local, LocalError> {
        let checkpoint = Checkpoint::open(folder)?;
        let tokenizer = tokenizer(&checkpoint, folder)?;
        let (model, params) = checkpoint.whole()?;
        let engine = engine(Device::Cpu { threads }, Arithmetic::F32, model, reading(), params)?;
        Ok(Local { engine, tokenizer, sessions: 0 })
    }

    /// Tokens that the model can read, the prompt included.
    pub fn context(&self) -> usize {
        self.engine.model().config.context as usize
    }

    pub fn parameters(&self) -> usize {
        self.engine.params().len()
    }

    /// Continues `prompt` by at most `tokens_max` tokens. `each` gets each new token's text as it comes (often nothing, where a
    /// character needs more bytes); `false` from it ends the text.
    ///
    /// # Errors
    /// The prompt leaves no room, or the weights give values that are not finite.
    pub fn generate(
        &mut self,
        prompt: &str,
        tokens_max: u32,
        sampling: Sampling,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<Why, LocalError> {
        let (mut piece, context) = (self.tokenizer.encode(prompt, Special::Parse, true)?, self.context());
        if piece.is_empty() || piece.len() >= context {
            return Err(LocalError::TooLong { got: piece.len(), context });
        }
        let (mut sampler, mut decoder) = (Sampler::new(sampling), self.tokenizer.decoder(true));
        self.sessions += 1;
        let session = self.sessions;
        let (mut position, mut why) = (0, Why::Length);
        for _ in 0..tokens_max {
            if position + piece.len() > context {
                why = Why::Context;
                break;
            }
            let logits = self.engine.infer(session, position, StageInput::Tokens(&piece))?;
            position += piece.len();
            let token = sampler.draw(&logits);
            if self.tokenizer.ends().contains(&token) {
                why = Why::Stop;
                break;
            }
            if !each(&decoder.push(token)) {
                why = Why::Stop;
                break;
            }
            piece = vec![token];
        }
        self.engine.drop_session(session);
        each(&decoder.finish());
        Ok(why)
    }
}

/// That of the folder. One without a file of it is read as bytes, where its vocabulary has them.
fn tokenizer(checkpoint: &Checkpoint, folder: &Path) -> Result<Tokenizer, LocalError> {
    match checkpoint.byte_level() {
        Ok(()) => Ok(Tokenizer::bytes()),
        Err(no_bytes) => match Tokenizer::open(folder) {
            Err(TextError::NoTokenizer { .. }) if checkpoint.config.vocab >= 256 => Ok(Tokenizer::bytes()),
            Err(TextError::NoTokenizer { .. }) => Err(no_bytes.into()),
            other => Ok(other?),
        },
    }
}

/// What an engine that never trains is told about training: as little memory as can be.
fn reading() -> Settings {
    let optimizer = Optimizer {
        kind: OptimizerKind::Sgd,
        lr: 0.0,
        beta1: 0.0,
        beta2: 0.0,
        eps: 0.0,
        decay: 0.0,
        schedule: Schedule::default(),
    };
    Settings { sequence: 1, micro_batch: 1, clip: 0.0, optimizer, recompute: Recompute::Always, kept_bytes_max: 0 }
}

#[cfg(test)]
mod tests {
    use skein_pipeline::{
        compute::hf,
        model::{StageModel, init},
    };
    use skein_protocol::run::{Family, ModelConfig};

    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config = ModelConfig {
            hidden: 16,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            ffn: 32,
            vocab: 256,
            context: 24,
            rope_theta: 10_000.0,
            tie_embeddings: false,
            norm_eps: 1e-5,
            head: None,
            rope_scaling: None,
            window: None,
            qkv_bias: false,
            qk_norm: false,
        };
        let model = StageModel::whole(config).unwrap();
        let params = init::initial(&model, 3);
        hf::write(dir.path(), Family::Llama, &[(model, params)]).unwrap();
        dir
    }

    fn text(local: &mut Local, prompt: &str, tokens: u32, seed: u64) -> (String, Why) {
        let mut text = String::new();
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed };
        let why = local.generate(prompt, tokens, sampling, |piece| {
            text.push_str(piece);
            true
        });
        (text, why.unwrap())
    }

    #[test]
    fn a_seed_gives_its_text_and_the_context_ends_it() {
        let dir = folder();
        let mut local = Local::open(dir.path(), 1).unwrap();
        let one = text(&mut local, "The fox", 10, 1);
        assert_eq!(one, text(&mut local, "The fox", 10, 1));
        assert_ne!(one.0, text(&mut local, "The fox", 10, 2).0);
        assert_eq!(one.1, Why::Length);
        assert_eq!(text(&mut local, "The fox", 100, 1).1, Why::Context);
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let long = local.generate(&"a".repeat(24), 1, sampling, |_| true);
        assert!(matches!(long, Err(LocalError::TooLong { got: 24, context: 24 })));
    }

    #[test]
    fn whoever_has_seen_enough_gets_no_more() {
        let dir = folder();
        let mut local = Local::open(dir.path(), 1).unwrap();
        let mut pieces = 0;
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let why = local.generate("a", 20, sampling, |_| {
            pieces += 1;
            pieces < 3
        });
        assert_eq!((why.unwrap(), pieces), (Why::Stop, 4));
    }
}
