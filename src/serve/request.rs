//! What programs ask of the API, read strictly. In: the JSON of a request. Out: messages or prompts, how to choose, and the form
//! of the answer; or an error that names the field.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{error::ApiError, fields::Fields};
use crate::{
    talk::{Prompt, Sampling, Taste},
    text::Message,
};

/// Answers of one request, all prompts together.
const CHOICES_MAX: usize = 32;
const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 4096;
/// What `/v1/completions` of the API gives unless told otherwise.
const COMPLETION_TOKENS: u32 = 16;

/// What both endpoints take.
#[derive(Debug)]
pub struct Common {
    pub model: String,
    pub tokens_max: Option<u32>,
    pub sampling: Sampling,
    pub taste: Taste,
    pub stops: Vec<String>,
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    pub logprobs: Option<u8>,
    /// Fields that were let pass.
    pub ignored: Vec<String>,
}

#[derive(Debug)]
pub struct Chat {
    pub messages: Vec<Message>,
    pub common: Common,
}

#[derive(Debug)]
pub struct Completion {
    pub prompts: Vec<Prompt>,
    pub echo: bool,
    pub common: Common,
}

impl Chat {
    pub fn parse(body: &[u8]) -> Result<Chat, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut ignored = Vec::new();
        let messages = match fields.take("messages") {
            Some(Value::Array(list)) if !list.is_empty() => {
                list.into_iter().enumerate().map(|(i, message)| self::message(i, message, &mut ignored)).collect()
            }
            Some(_) => Err(ApiError::invalid("messages", "`messages` is not a list with a message in it.")),
            None => Err(ApiError::invalid("messages", "`messages` is missing.")),
        }?;
        let tokens_max = fields.whole("max_completion_tokens", 1..=u64::MAX)?;
        let tokens_max = fields.whole("max_tokens", 1..=u64::MAX)?.or(tokens_max);
        let with_logprobs = fields.flag("logprobs")?;
        let top = fields.whole("top_logprobs", 0..=20)?;
        if top.is_some() && !with_logprobs {
            return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`."));
        }
        plain_answers_only(&mut fields)?;
        let common = Common {
            tokens_max: tokens_max.map(tokens),
            logprobs: with_logprobs.then(|| top.unwrap_or(0) as u8),
            ..Common::parse(&mut fields)?
        };
        ignored.extend(fields.finish("", &[])?);
        Ok(Chat { messages, common: Common { ignored, ..common } })
    }
}

impl Completion {
    pub fn parse(body: &[u8]) -> Result<Completion, ApiError> {
        let mut fields = Fields::parse(body)?;
        let prompts = prompts(fields.take("prompt"))?;
        let tokens_max = fields.whole("max_tokens", 0..=u64::MAX)?.map_or(COMPLETION_TOKENS, tokens);
        let (echo, logprobs) = (fields.flag("echo")?, fields.whole("logprobs", 0..=5)?);
        if echo && logprobs.is_some() {
            let message =
                "`logprobs` with `echo` is not supported here: the prompt's own probabilities are not computed.";
            return Err(ApiError::unsupported("logprobs", message));
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "`suffix` is not supported: text is only continued."));
        }
        let best_of = fields.whole("best_of", 1..=u64::MAX)?;
        let common = Common { tokens_max: Some(tokens_max), ..Common::parse(&mut fields)? };
        if best_of.is_some_and(|best_of| best_of != common.n as u64) {
            return Err(ApiError::unsupported("best_of", "`best_of` can only be what `n` is."));
        }
        if prompts.len() * common.n > CHOICES_MAX {
            let message =
                format!("{} prompts, {} times each: at most {CHOICES_MAX} together.", prompts.len(), common.n);
            return Err(ApiError::invalid("prompt", message));
        }
        let common = Common { logprobs: logprobs.map(|top| top as u8), ignored: fields.finish("", &[])?, ..common };
        Ok(Completion { prompts, echo, common })
    }
}

impl Common {
    fn parse(fields: &mut Fields) -> Result<Common, ApiError> {
        let model = fields.text("model")?.ok_or_else(|| ApiError::invalid("model", "`model` is missing."))?;
        let sampling = Sampling {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            seed: seed(fields)?,
        };
        let taste = Taste {
            top_k: fields.whole("top_k", 0..=u64::MAX)?.map_or(0, tokens),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            bias: bias(fields)?,
        };
        let stream = fields.flag("stream")?;
        let mut include_usage = false;
        if let Some(options) = fields.take("stream_options") {
            let mut options = Fields::of(options, "stream_options")?;
            if !stream {
                return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream: true`."));
            }
            include_usage = options.flag("include_usage")?;
            options.finish("stream_options", &["include_obfuscation"])?;
        }
        Ok(Common {
            model,
            tokens_max: None,
            sampling,
            taste,
            stops: stops(fields)?,
            n: fields.whole("n", 1..=4)?.unwrap_or(1) as usize,
            stream,
            include_usage,
            logprobs: None,
            ignored: Vec::new(),
        })
    }
}

fn tokens(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Any whole number, a negative one too; another at each request without one.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    match fields.take("seed") {
        None => Ok(rand::random()),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(|seed| seed as u64))
            .ok_or_else(|| ApiError::invalid("seed", "`seed` is not a whole number.")),
    }
}

fn bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(BTreeMap::new()) };
    let wrong = || ApiError::invalid("logit_bias", "`logit_bias` gives token ids numbers from -100 to 100.");
    let Value::Object(map) = value else { return Err(wrong()) };
    let one = |(token, bias): (String, Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)).ok_or_else(wrong)?;
        Ok((token.parse().map_err(|_| wrong())?, bias as f32))
    };
    map.into_iter().map(one).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::invalid("stop", format!("`stop` is a text or a list of 1 to {STOPS_MAX}, none empty."));
    let stops: Vec<String> = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(value) => serde_json::from_value(value).map_err(|_| wrong())?,
    };
    let fits = |stop: &String| (1..=STOP_BYTES_MAX).contains(&stop.len());
    if stops.len() <= STOPS_MAX && stops.iter().all(fits) { Ok(stops) } else { Err(wrong()) }
}

/// What asks for something else than text is refused; what asks for text says nothing new.
fn plain_answers_only(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions"] {
        if fields.take(name).is_some_and(|tools| tools.as_array().is_none_or(|tools| !tools.is_empty())) {
            return Err(ApiError::unsupported(name, format!("`{name}` is not supported: answers are text.")));
        }
    }
    for name in ["tool_choice", "function_call"] {
        if fields.take(name).is_some_and(|choice| choice != "none" && choice != "auto") {
            return Err(ApiError::unsupported(name, format!("`{name}` is not supported: answers are text.")));
        }
    }
    if let Some(format) = fields.take("response_format")
        && format["type"] != "text"
    {
        let message = "`response_format` can only be {\"type\": \"text\"}.";
        return Err(ApiError::unsupported("response_format", message));
    }
    if fields.take("modalities").is_some_and(|kinds| kinds != serde_json::json!(["text"])) {
        return Err(ApiError::unsupported("modalities", "`modalities` can only be [\"text\"]."));
    }
    Ok(())
}

fn message(at: usize, value: Value, ignored: &mut Vec<String>) -> Result<Message, ApiError> {
    let name = format!("messages[{at}]");
    let mut fields = Fields::of(value, &name)?;
    let role_name = format!("{name}.role");
    let role = match fields.take("role") {
        Some(Value::String(role)) => role,
        _ => return Err(ApiError::invalid(&role_name, format!("`{role_name}` is missing."))),
    };
    let role = match role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        other => {
            let message = format!("`{role_name}` is `{other}`; it can be system, developer, user, assistant or tool.");
            return Err(ApiError::invalid(&role_name, message));
        }
    };
    let content = content(fields.take("content"), &format!("{name}.content"))?;
    for calls in ["tool_calls", "function_call", "audio"] {
        if fields.take(calls).is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty())) {
            let full = format!("{name}.{calls}");
            return Err(ApiError::unsupported(&full, format!("`{full}` is not supported: messages are text.")));
        }
    }
    ignored.extend(fields.finish(&name, &["name", "refusal", "annotations", "tool_call_id", "id", "status"])?);
    Ok(Message::new(role, content))
}

/// Text, or parts of it.
fn content(value: Option<Value>, name: &str) -> Result<String, ApiError> {
    match value {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut whole = String::new();
            for (i, part) in parts.iter().enumerate() {
                let text = part["text"].as_str().filter(|_| part["type"] == "text");
                let Some(text) = text else {
                    let full = format!("{name}[{i}]");
                    let kind = part["type"].as_str().unwrap_or("unknown");
                    let message = format!("`{full}` is of the type {kind}; only text is read.");
                    return Err(ApiError::unsupported(&full, message));
                };
                whole.push_str(text);
            }
            Ok(whole)
        }
        Some(_) => Err(ApiError::invalid(name, format!("`{name}` is neither text nor a list of parts."))),
    }
}

/// One text, several, one list of token ids, or several.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || ApiError::invalid("prompt", "`prompt` is a text, a list of texts, or token ids.");
    let ids = |list: &[Value]| -> Option<Prompt> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        Some(Prompt::Tokens(list.iter().map(id).collect::<Option<_>>()?))
    };
    match value {
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            Ok(vec![ids(&list).ok_or_else(wrong)?])
        }
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= CHOICES_MAX => list
            .into_iter()
            .map(|one| match one {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(list) => ids(&list).ok_or_else(wrong),
                _ => Err(wrong()),
            })
            .collect(),
        Some(_) => Err(wrong()),
        None => Err(ApiError::invalid("prompt", "`prompt` is missing.")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(more: Value) -> Result<Chat, Value> {
        let mut request = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Chat::parse(request.to_string().as_bytes()).map_err(|error| error.body()["error"].clone())
    }

    fn completion(more: Value) -> Result<Completion, Value> {
        let mut request = json!({ "model": "m", "prompt": "hi" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Completion::parse(request.to_string().as_bytes()).map_err(|error| error.body()["error"].clone())
    }

    #[test]
    fn what_could_change_the_answer_is_refused_by_name() {
        for (more, param, code) in [
            (json!({ "tools": [{}] }), "tools", "unsupported_parameter"),
            (json!({ "response_format": { "type": "json_object" } }), "response_format", "unsupported_parameter"),
            (json!({ "min_p": 0.1 }), "min_p", "unsupported_parameter"),
            (json!({ "audio": {} }), "audio", "unsupported_parameter"),
            (json!({ "temperature": 3 }), "temperature", "invalid_value"),
            (json!({ "top_p": "a" }), "top_p", "invalid_value"),
            (json!({ "n": 5 }), "n", "invalid_value"),
            (json!({ "n": 1.5 }), "n", "invalid_value"),
            (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop", "invalid_value"),
            (json!({ "stop": "" }), "stop", "invalid_value"),
            (json!({ "max_tokens": 0 }), "max_tokens", "invalid_value"),
            (json!({ "top_logprobs": 3 }), "top_logprobs", "invalid_value"),
            (json!({ "logit_bias": { "a": 1 } }), "logit_bias", "invalid_value"),
            (json!({ "stream_options": {} }), "stream_options", "invalid_value"),
            (json!({ "seed": "x" }), "seed", "invalid_value"),
            (json!({ "messages": [] }), "messages", "invalid_value"),
            (json!({ "messages": [{ "role": "king", "content": "" }] }), "messages[0].role", "invalid_value"),
            (
                json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
                "messages[0].content[0]",
                "unsupported_parameter",
            ),
            (
                json!({ "messages": [{ "role": "user", "content": "a", "weight": 1 }] }),
                "messages[0].weight",
                "unsupported_parameter",
            ),
        ] {
            let error = chat(more.clone()).unwrap_err();
            assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{more} {error}");
        }
        for (more, param) in [(json!({ "suffix": "x" }), "suffix"), (json!({ "best_of": 2 }), "best_of")] {
            assert_eq!(completion(more).unwrap_err()["param"], param);
        }
        assert_eq!(completion(json!({ "echo": true, "logprobs": 1 })).unwrap_err()["param"], "logprobs");
        assert_eq!(Chat::parse(b"{").unwrap_err().body()["error"]["code"], "invalid_json");
    }

    #[test]
    fn what_changes_nothing_is_let_pass_and_told() {
        let chat = chat(json!({ "user": "ada", "store": false, "tools": [], "tool_choice": "none", "logprobs": null }));
        assert_eq!(chat.unwrap().common.ignored, ["store", "user"]);
    }

    #[test]
    fn messages_are_text_or_parts_of_it() {
        let messages = json!([
            { "role": "developer", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": null, "refusal": null },
        ]);
        let chat = chat(json!({ "messages": messages, "max_completion_tokens": 9, "stop": "x" })).unwrap();
        let said: Vec<(&str, &str)> = chat.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(said, [("system", "be brief"), ("user", "ab"), ("assistant", "")]);
        assert_eq!((chat.common.tokens_max, chat.common.stops), (Some(9), vec!["x".to_string()]));
    }

    #[test]
    fn prompts_are_texts_or_ids() {
        let prompts = |prompt: Value| completion(json!({ "prompt": prompt })).map(|request| request.prompts);
        assert_eq!(prompts(json!("a")).unwrap(), [Prompt::Text("a".into())]);
        assert_eq!(prompts(json!(["a", "b"])).unwrap().len(), 2);
        assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2]])).unwrap().len(), 2);
        for wrong in [json!([]), json!(7), json!([-1]), json!([true])] {
            assert_eq!(prompts(wrong).unwrap_err()["param"], "prompt");
        }
        assert_eq!(completion(json!({})).unwrap().common.tokens_max, Some(16));
    }
}
