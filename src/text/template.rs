//! A model's chat template: from messages to the text that the model reads. In: Jinja from a model's folder, or none. Out: the
//! bytes that `apply_chat_template` of Python's transformers gives, or why not.
//!
//! Templates come from strangers, like the models. One has a budget of steps, which bounds its memory too, and of output; it
//! reaches no file, no clock and no environment variable.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use jiff::civil::DateTime;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};

use super::{
    files::{Files, TEMPLATE, TEMPLATE_JSON, TOKENIZER_CONFIG, TextError},
    generation, json,
};

/// Steps of the engine that any conversation may take: templates in use take about fifty a message.
const FUEL: u64 = 500_000;
/// More for each message: a template may look at all others.
const FUEL_OF_A_MESSAGE: u64 = 20_000;
/// One step pays for 64 bytes that are made or looked at. A template that trims and splits looks at each byte a few times.
const BYTES_OF_A_STEP: u64 = 4;
/// Output beside the messages themselves.
const OUTPUT: usize = 1 << 20;
/// Calls inside calls.
const RECURSION: usize = 64;

/// For a model without a template.
const PLAIN: &str = "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}\
                     {% if add_generation_prompt %}Assistant:{% endif %}";

/// Code points that no text has: the standard reserves them for what a program marks inside.
const MARKS: RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Files(#[from] TextError),
    #[error("the model has several chat templates and none is called `default`: {}", names.join(", "))]
    Several { names: Vec<String> },
    #[error("the chat template is no Jinja{}: {reason}", at(line))]
    Syntax { line: Option<usize>, reason: String },
    #[error("the chat template refuses this conversation: {message}")]
    Refused { message: String },
    #[error("the chat template fails{}: {reason}", at(line))]
    Failed { line: Option<usize>, reason: String },
    #[error("the chat template does not end within {steps} steps")]
    Endless { steps: u64 },
    #[error("the chat template writes more than {limit} bytes")]
    TooLong { limit: usize },
}

fn at(line: &Option<usize>) -> String {
    line.map_or(String::new(), |line| format!(" (line {line})"))
}

/// Who says what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }

    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// Clones are one template.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Environment<'static>,
    source: String,
    /// `bos_token` and the like.
    variables: BTreeMap<String, String>,
    marks_generation: bool,
}

/// What `raise_exception` of a template says, kept apart from the engine's own errors.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// `User: …` and `Assistant: …`, a line each.
    pub fn plain() -> ChatTemplate {
        ChatTemplate::new(PLAIN, BTreeMap::new()).expect("our own template is Jinja")
    }

    /// The template of a model, where it has one: the file of its own, or the one in its tokenizer's configuration.
    ///
    /// # Errors
    /// A malformed file, several templates without a default, or no Jinja.
    pub fn from_files(files: &Files) -> Result<Option<ChatTemplate>, TemplateError> {
        let source = match files.text(TEMPLATE)? {
            Some(source) => Some(source.to_string()),
            None => match configured(files, TOKENIZER_CONFIG)? {
                Some(source) => Some(source),
                None => configured(files, TEMPLATE_JSON)?,
            },
        };
        source.map(|source| ChatTemplate::new(&source, files.special_tokens()?)).transpose()
    }

    /// A template with the `variables` that it finds beside the messages, such as `bos_token`.
    ///
    /// # Errors
    /// It is no Jinja.
    pub fn new(source: &str, variables: BTreeMap<String, String>) -> Result<ChatTemplate, TemplateError> {
        let (rewritten, marks_generation) = generation::rewrite(source);
        let mut environment = environment();
        environment
            .add_template_owned("chat", rewritten)
            .map_err(|error| TemplateError::Syntax { line: error.line(), reason: reason(&error) })?;
        let source = source.to_string();
        Ok(ChatTemplate { inner: Arc::new(Inner { environment, source, variables, marks_generation }) })
    }

    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Whether the template itself says what the assistant wrote.
    pub fn marks_generation(&self) -> bool {
        self.inner.marks_generation
    }

    /// The text of a conversation. `generation_prompt`: followed by how an answer begins. `now`: what the template takes for
    /// the present, where it asks.
    ///
    /// # Errors
    /// The template refuses the conversation, fails, or exceeds its budget.
    pub fn render(
        &self,
        messages: &[Message],
        generation_prompt: bool,
        now: DateTime,
    ) -> Result<String, TemplateError> {
        self.rendered(messages, generation_prompt, now, &[])
    }

    /// The text of a conversation, and the bytes of it that the template marks as written by the assistant.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_spans(
        &self,
        messages: &[Message],
        now: DateTime,
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        let used = |mark: char| {
            self.source().contains(mark)
                || messages.iter().any(|message| message.content.contains(mark) || message.role.contains(mark))
        };
        let mut free = MARKS.filter(|mark| !used(*mark));
        let (Some(begin), Some(end)) = (free.next(), free.next()) else {
            let reason = "the conversation uses every code point that is reserved for marks".into();
            return Err(TemplateError::Failed { line: None, reason });
        };
        let marks = [(generation::BEGIN, Value::from(begin)), (generation::END, Value::from(end))];
        let marked = self.rendered(messages, false, now, &marks)?;
        Ok(generation::spans(&marked, begin, end))
    }

    pub(super) fn rendered(
        &self,
        messages: &[Message],
        generation_prompt: bool,
        now: DateTime,
        more: &[(&str, Value)],
    ) -> Result<String, TemplateError> {
        let mut context: BTreeMap<&str, Value> = BTreeMap::from([
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("strftime_now", Value::from_function(move |format: &str| strftime(now, format))),
        ]);
        context.extend(self.inner.variables.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
        context.extend(more.iter().cloned());
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let steps = FUEL + FUEL_OF_A_MESSAGE * messages.len() as u64 + bytes as u64 / BYTES_OF_A_STEP;
        let mut environment = self.inner.environment.clone();
        environment.set_fuel(Some(steps));
        let template = environment.get_template("chat").expect("it was added when it was compiled");
        let text = template.render(Value::from_pairs(context)).map_err(|error| failure(&error, steps))?;
        let limit = OUTPUT + 4 * bytes;
        if text.len() > limit { Err(TemplateError::TooLong { limit }) } else { Ok(text) }
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({} bytes)", self.source().len())
    }
}

/// The `chat_template` of a configuration: one, or the default one of several.
fn configured(files: &Files, name: &str) -> Result<Option<String>, TemplateError> {
    let config = files.json(name)?;
    let Some(template) = config.as_ref().and_then(|config| config.get("chat_template")) else { return Ok(None) };
    let named: Vec<(String, String)> = match template {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::String(source) => return Ok(Some(source.clone())),
        serde_json::Value::Array(list) => list
            .iter()
            .filter_map(|entry| Some((entry.get("name")?.as_str()?.into(), entry.get("template")?.as_str()?.into())))
            .collect(),
        serde_json::Value::Object(map) => {
            map.iter().filter_map(|(name, source)| Some((name.clone(), source.as_str()?.into()))).collect()
        }
        _ => return Err(files.malformed(name, "`chat_template` is neither text nor a list").into()),
    };
    match named.iter().find(|(name, _)| name == "default") {
        Some((_, source)) => Ok(Some(source.clone())),
        None => Err(TemplateError::Several { names: named.into_iter().map(|(name, _)| name).collect() }),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
    environment.set_recursion_limit(RECURSION);
    // Without it the name of a template decides what is escaped for HTML.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment
}

/// A date without a time zone, as Python's `datetime.now()` is: what asks for its zone gets nothing.
fn strftime(now: DateTime, format: &str) -> Result<String, Error> {
    let format = format.replace("%Z", "").replace("%z", "");
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

fn failure(error: &Error, steps: u64) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        cause = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::Endless { steps },
        _ => TemplateError::Failed { line: error.line(), reason: reason(error) },
    }
}

fn reason(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let messages = [Message::new("user", "hi")];
        ChatTemplate::new(source, BTreeMap::new())?.render(&messages, true, DateTime::default())
    }

    fn files(files: &[(&str, &str)]) -> Files {
        Files::new("a peer", files.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec()))).unwrap()
    }

    #[test]
    fn a_hostile_template_ends_soon_and_stays_small() {
        let endless = [
            "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "{{ 'a' * 99000000 }}",
            "{{ messages | tojson(indent='                                                                ') * 9000000 }}",
            "{% for i in range(4000) %}{{ 'a' * 100000 }}{% endfor %}",
        ];
        for source in endless {
            let got = render(source);
            assert!(matches!(got, Err(TemplateError::Endless { .. })), "{source}: {:?}", got.map(|text| text.len()));
        }
        let got = render("{% for i in range(200) %}{{ 'a' * 10000 }}{% endfor %}");
        assert!(matches!(got, Err(TemplateError::TooLong { limit }) if limit == OUTPUT + 4 * 6));
        let deep = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
        assert!(matches!(render(deep), Err(TemplateError::Failed { .. })));
        assert!(matches!(render("{% include '/etc/passwd' %}"), Err(TemplateError::Failed { .. })));
        assert!(render(&"(".repeat(100_000)).is_ok());
        assert!(matches!(render(&format!("{{{{ {} }}}}", "(".repeat(100_000))), Err(TemplateError::Syntax { .. })));
    }

    #[test]
    fn what_the_template_says_against_a_conversation_is_said() {
        match render("{{ raise_exception('only ' ~ messages[0].role) }}") {
            Err(TemplateError::Refused { message }) => assert_eq!(message, "only user"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(render("\n{% if %}"), Err(TemplateError::Syntax { line: Some(2), .. })));
        assert!(matches!(render("\n{{ a.b }}"), Err(TemplateError::Failed { line: Some(2), .. })));
    }

    #[test]
    fn a_file_of_its_own_goes_before_the_configuration() {
        let config = (
            TOKENIZER_CONFIG,
            r#"{"chat_template":[{"name":"default","template":"a"},{"name":"rag","template":"b"}]}"#,
        );
        let source = |all: &[(&str, &str)]| {
            ChatTemplate::from_files(&files(all)).unwrap().map(|template| template.source().to_string())
        };
        assert_eq!(source(&[config]).as_deref(), Some("a"));
        assert_eq!(source(&[config, (TEMPLATE, "c")]).as_deref(), Some("c"));
        assert_eq!(
            source(&[(TOKENIZER_CONFIG, "{}"), (TEMPLATE_JSON, r#"{"chat_template":"d"}"#)]).as_deref(),
            Some("d")
        );
        assert_eq!(source(&[(TOKENIZER_CONFIG, r#"{"chat_template":null}"#)]), None);
        let several = files(&[(TOKENIZER_CONFIG, r#"{"chat_template":[{"name":"rag","template":"b"}]}"#)]);
        match ChatTemplate::from_files(&several) {
            Err(TemplateError::Several { names }) => assert_eq!(names, ["rag"]),
            other => panic!("{other:?}"),
        }
        let malformed = files(&[(TOKENIZER_CONFIG, r#"{"chat_template":7}"#)]);
        assert!(matches!(ChatTemplate::from_files(&malformed), Err(TemplateError::Files(TextError::Malformed { .. }))));
    }

    #[test]
    fn a_conversation_that_uses_the_marks_keeps_them() {
        let template =
            ChatTemplate::new("{% generation %}{{ messages[0].content }}{% endgeneration %}", BTreeMap::new()).unwrap();
        let messages = [Message::new("user", "a\u{fdd0}b\u{fdd1}")];
        let (text, spans) = template.render_spans(&messages, DateTime::default()).unwrap();
        assert_eq!((text.as_str(), &spans[0], spans.len()), ("a\u{fdd0}b\u{fdd1}", &(0..8), 1));
    }
}
