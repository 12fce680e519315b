//! One record of a person's data. In: an object with named columns, of JSON or Parquet. Out: [`Record`], or why it is none.
//!
//! Which kind a record is of is seen from its columns: `messages` (or `conversations`), `prompt` and `completion`, `instruction`
//! and `output`, or `text`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skein_protocol::hash;

use crate::text::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A prompt and its completion, as they stand.
    Completion,
    /// An instruction, perhaps with an input, and the output: one turn of a conversation.
    Instruction,
    Conversation,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "plain text",
            Kind::Completion => "a prompt with its completion",
            Kind::Instruction => "an instruction with its output",
            Kind::Conversation => "a conversation",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Text(String),
    Completion { prompt: String, completion: String },
    Conversation(Vec<Message>),
}

/// Why an object is no record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Columns(Vec<String>),
    Mixed(Kind),
    /// Nothing but white space. It is left out and is no mistake.
    Empty,
    Reason(&'static str),
}

/// Which columns a person's data has, where they are called otherwise: known name to own name.
pub type Columns = BTreeMap<String, String>;

impl Record {
    /// `wanted`: the kind of the records before, or the one that the person asked for.
    pub fn read(object: &Map<String, Value>, columns: &Columns, wanted: Option<Kind>) -> Result<(Kind, Record), Wrong> {
        let fields = Fields { object, columns };
        let kind = fields.kind().ok_or_else(|| Wrong::Columns(object.keys().cloned().collect()))?;
        let kind = match wanted {
            Some(wanted) if wanted == kind || fields.has(wanted) => wanted,
            Some(_) => return Err(Wrong::Mixed(kind)),
            None => kind,
        };
        let record = fields.record(kind)?;
        if record.is_empty() { Err(Wrong::Empty) } else { Ok((kind, record)) }
    }

    fn is_empty(&self) -> bool {
        let blank = |text: &str| text.trim().is_empty();
        match self {
            Record::Text(text) => blank(text),
            Record::Completion { completion, .. } => completion.is_empty(),
            Record::Conversation(messages) => messages.iter().all(|message| blank(&message.content)),
        }
    }

    /// Equal for equal records, wherever they stand: what finds duplicates and decides who is held out.
    pub fn key(&self) -> u64 {
        let digest = match self {
            Record::Text(text) => hash::keyed("skein text record 1", &[text.as_bytes()]),
            Record::Completion { prompt, completion } => {
                hash::keyed("skein completion record 1", &[prompt.as_bytes(), completion.as_bytes()])
            }
            Record::Conversation(messages) => {
                let parts: Vec<&[u8]> =
                    messages.iter().flat_map(|message| [message.role.as_bytes(), message.content.as_bytes()]).collect();
                hash::keyed("skein conversation record 1", &parts)
            }
        };
        u64::from_le_bytes(digest.0[..8].try_into().expect("eight bytes"))
    }

    /// What a person wrote, without what a template adds.
    pub fn plain(&self) -> String {
        match self {
            Record::Text(text) => text.clone(),
            Record::Completion { prompt, completion } => format!("{prompt}{completion}"),
            Record::Conversation(messages) => {
                messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

struct Fields<'a> {
    object: &'a Map<String, Value>,
    columns: &'a Columns,
}

impl Fields<'_> {
    /// A column that is there and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        let name = self.columns.get(name).map_or(name, String::as_str);
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn kind(&self) -> Option<Kind> {
        [Kind::Conversation, Kind::Completion, Kind::Instruction, Kind::Text].into_iter().find(|kind| self.has(*kind))
    }

    fn has(&self, kind: Kind) -> bool {
        let all = |names: &[&str]| names.iter().all(|name| self.get(name).is_some());
        match kind {
            Kind::Text => all(&["text"]),
            Kind::Completion => all(&["prompt", "completion"]),
            Kind::Instruction => all(&["instruction", "output"]),
            Kind::Conversation => all(&["messages"]) || all(&["conversations"]),
        }
    }

    fn record(&self, kind: Kind) -> Result<Record, Wrong> {
        Ok(match kind {
            Kind::Text => Record::Text(self.string("text", "`text` not a string")?),
            Kind::Completion => Record::Completion {
                prompt: self.string("prompt", "`prompt` not a string")?,
                completion: self.string("completion", "`completion` not a string")?,
            },
            Kind::Instruction => self.instruction()?,
            Kind::Conversation => Record::Conversation(self.messages()?),
        })
    }

    fn string(&self, name: &str, wrong: &'static str) -> Result<String, Wrong> {
        self.get(name).and_then(Value::as_str).map(str::to_string).ok_or(Wrong::Reason(wrong))
    }

    fn instruction(&self) -> Result<Record, Wrong> {
        let mut asked = self.string("instruction", "`instruction` not a string")?;
        if self.get("input").is_some() {
            let input = self.string("input", "`input` not a string")?;
            if !input.trim().is_empty() {
                asked = format!("{asked}\n\n{input}");
            }
        }
        let answer = self.string("output", "`output` not a string")?;
        let mut messages = vec![Message::new("user", asked), Message::new("assistant", answer)];
        if let Some(system) = self.get("system").and_then(Value::as_str).filter(|system| !system.trim().is_empty()) {
            messages.insert(0, Message::new("system", system));
        }
        Ok(Record::Conversation(messages))
    }

    fn messages(&self) -> Result<Vec<Message>, Wrong> {
        let list = self.get("messages").or_else(|| self.get("conversations")).and_then(Value::as_array);
        let list = list.ok_or(Wrong::Reason("messages not a list"))?;
        list.iter().map(message).collect()
    }
}

/// `role` and `content`, or `from` and `value` as ShareGPT writes them.
fn message(value: &Value) -> Result<Message, Wrong> {
    let field = |one: &str, other: &str| value.get(one).or_else(|| value.get(other));
    let role = field("role", "from").and_then(Value::as_str).ok_or(Wrong::Reason("a message without a role"))?;
    let called = value.get("tool_calls").or_else(|| value.get("function_call"));
    if called.is_some_and(|calls| !calls.is_null() && calls.as_array().is_none_or(|calls| !calls.is_empty())) {
        return Err(Wrong::Reason("a message that calls tools"));
    }
    let content = match field("content", "value") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| {
                part.get("text").and_then(Value::as_str).ok_or(Wrong::Reason("a message with a part that is no text"))
            })
            .collect::<Result<String, Wrong>>()?,
        _ => return Err(Wrong::Reason("a message without text")),
    };
    let role = match role {
        "human" => "user",
        "gpt" | "bot" | "model" => "assistant",
        role => role,
    };
    Ok(Message::new(role, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, wanted: Option<Kind>) -> Result<(Kind, Record), Wrong> {
        Record::read(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap(), &Columns::new(), wanted)
    }

    fn said(messages: &[(&str, &str)]) -> Record {
        Record::Conversation(messages.iter().map(|(role, content)| Message::new(*role, *content)).collect())
    }

    #[test]
    fn the_columns_say_which_kind_it_is() {
        let talk = said(&[("user", "a"), ("assistant", "b")]);
        let known = [
            (r#"{"text":"a","label":3}"#, Kind::Text, Record::Text("a".into())),
            (
                r#"{"prompt":"a","completion":"b"}"#,
                Kind::Completion,
                Record::Completion { prompt: "a".into(), completion: "b".into() },
            ),
            (r#"{"instruction":"a","input":"","output":"b"}"#, Kind::Instruction, talk.clone()),
            (
                r#"{"instruction":"x","input":"y","output":"b"}"#,
                Kind::Instruction,
                said(&[("user", "x\n\ny"), ("assistant", "b")]),
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"text","text":"b"}],"tool_calls":[]}],"text":"no"}"#,
                Kind::Conversation,
                talk.clone(),
            ),
            (
                r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],"messages":null}"#,
                Kind::Conversation,
                talk,
            ),
        ];
        for (json, kind, record) in known {
            assert_eq!(read(json, None), Ok((kind, record)), "{json}");
        }
    }

    #[test]
    fn what_is_no_record_says_why() {
        let known = [
            (r#"{"body":"a","title":"b"}"#, Wrong::Columns(vec!["body".into(), "title".into()])),
            (r#"{"text":7}"#, Wrong::Reason("`text` not a string")),
            (r#"{"text":" \n"}"#, Wrong::Empty),
            (r#"{"messages":[]}"#, Wrong::Empty),
            (r#"{"messages":[{"content":"a"}]}"#, Wrong::Reason("a message without a role")),
            (r#"{"messages":[{"role":"user"}]}"#, Wrong::Reason("a message without text")),
            (
                r#"{"messages":[{"role":"assistant","content":"a","tool_calls":[{}]}]}"#,
                Wrong::Reason("a message that calls tools"),
            ),
        ];
        for (json, wrong) in known {
            assert_eq!(read(json, None), Err(wrong), "{json}");
        }
        assert_eq!(read(r#"{"text":"a"}"#, Some(Kind::Conversation)), Err(Wrong::Mixed(Kind::Text)));
        assert!(
            read(r#"{"text":"a","prompt":"b","completion":"c"}"#, Some(Kind::Text)).is_ok(),
            "it has what is wanted"
        );
    }

    #[test]
    fn columns_may_have_other_names() {
        let columns = Columns::from([("text".into(), "body".into())]);
        let object = serde_json::from_str::<Value>(r#"{"body":"a","text":"b"}"#).unwrap();
        let (_, record) = Record::read(object.as_object().unwrap(), &columns, None).unwrap();
        assert_eq!(record, Record::Text("a".into()));
    }

    #[test]
    fn a_key_tells_records_apart_and_finds_equal_ones() {
        let one = said(&[("user", "ab"), ("assistant", "c")]);
        assert_eq!(one.key(), said(&[("user", "ab"), ("assistant", "c")]).key());
        assert_ne!(one.key(), said(&[("user", "a"), ("assistant", "bc")]).key());
        assert_ne!(Record::Text("a".into()).key(), Record::Text("b".into()).key());
    }
}
