//! A conversation to learn from. In: messages and a model's own chat template. Out: token ids, and which of them the assistant
//! said.
//!
//! Nothing is looked for in the text: a template is rendered up to each answer, with it and without it, and the difference is
//! what the assistant said, with whatever ends its turn. Where a template marks this itself, its marks count.

use std::ops::Range;

use jiff::civil::DateTime;

use super::{
    example::Example,
    files::TextError,
    template::{ChatTemplate, Message, TemplateError},
    tokenizer::Tokenizer,
};

/// Which tokens of a conversation are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Learn {
    /// What the assistant says, in all of its turns.
    #[default]
    Answers,
    /// What it says last.
    LastAnswer,
    /// All of the text, whoever says it.
    Everything,
}

#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(
        "the chat template cannot be split into turns: its text for {turns} messages is not the beginning of its text for \
         {more}; the first difference is at byte {offset}"
    )]
    NotAPrefix { turns: usize, more: usize, offset: usize },
    #[error("nothing in this conversation is said by the assistant, so nothing would be learned")]
    NothingLearned,
}

/// A conversation as an example.
///
/// # Errors
/// See [`ChatError`].
pub fn example(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    learn: Learn,
    now: DateTime,
) -> Result<Example, ChatError> {
    let (text, spans) = spans(template, messages, learn, now)?;
    let example = Example::marked(tokenizer, &text, &spans)?;
    if example.learned_count() == 0 { Err(ChatError::NothingLearned) } else { Ok(example) }
}

/// The text of a conversation and the bytes of it that are learned: ascending, and apart from each other.
///
/// # Errors
/// The template's, or its text for some messages is not the beginning of its text for more.
pub fn spans(
    template: &ChatTemplate,
    messages: &[Message],
    learn: Learn,
    now: DateTime,
) -> Result<(String, Vec<Range<usize>>), ChatError> {
    if learn == Learn::Everything {
        let text = template.render(messages, false, now)?;
        let all = 0..text.len();
        return Ok((text, vec![all]));
    }
    let mut answers: Vec<usize> = (0..messages.len()).filter(|i| messages[*i].is_assistant()).collect();
    if learn == Learn::LastAnswer {
        answers.drain(..answers.len().saturating_sub(1));
    }
    if template.marks_generation() {
        let (text, mut spans) = template.render_spans(messages, now)?;
        if learn == Learn::LastAnswer {
            let before = answers.last().map_or(Ok(0), |last| count_spans(template, &messages[..*last], now))?;
            spans.drain(..before.min(spans.len()));
        }
        return Ok((text, spans));
    }
    let text = template.render(messages, false, now)?;
    let spans = answers.into_iter().map(|answer| span(template, messages, answer, &text, now));
    let spans = spans.collect::<Result<_, _>>()?;
    Ok((text, spans))
}

fn count_spans(template: &ChatTemplate, messages: &[Message], now: DateTime) -> Result<usize, ChatError> {
    if messages.is_empty() { Ok(0) } else { Ok(template.render_spans(messages, now)?.1.len()) }
}

/// What the message at `answer` adds to `text`, the whole conversation.
fn span(
    template: &ChatTemplate,
    messages: &[Message],
    answer: usize,
    text: &str,
    now: DateTime,
) -> Result<Range<usize>, ChatError> {
    let without = template.render(&messages[..answer], true, now)?;
    let with = template.render(&messages[..=answer], false, now)?;
    is_beginning(&without, &with, answer, answer + 1)?;
    is_beginning(&with, text, answer + 1, messages.len())?;
    Ok(without.len()..with.len())
}

fn is_beginning(short: &str, long: &str, turns: usize, more: usize) -> Result<(), ChatError> {
    if long.starts_with(short) {
        return Ok(());
    }
    let offset = short.bytes().zip(long.bytes()).take_while(|(a, b)| a == b).count();
    Err(ChatError::NotAPrefix { turns, more, offset })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, BTreeMap::new()).unwrap()
    }

    fn conversation() -> Vec<Message> {
        [("user", "hi"), ("assistant", "ho"), ("user", "and?"), ("assistant", "so")]
            .map(|(role, content)| Message::new(role, content))
            .to_vec()
    }

    fn learned(source: &str, messages: &[Message], learn: Learn) -> Vec<String> {
        let (text, spans) = spans(&template(source), messages, learn, DateTime::default()).unwrap();
        spans.into_iter().map(|span| text[span].to_string()).collect()
    }

    #[test]
    fn the_plain_template_learns_what_follows_the_colon() {
        let source = ChatTemplate::plain().source().to_string();
        assert_eq!(learned(&source, &conversation(), Learn::Answers), [" ho\n", " so\n"]);
        assert_eq!(learned(&source, &conversation(), Learn::LastAnswer), [" so\n"]);
        assert_eq!(
            learned(&source, &conversation(), Learn::Everything),
            ["User: hi\nAssistant: ho\nUser: and?\nAssistant: so\n"]
        );
    }

    #[test]
    fn the_last_answer_has_all_of_its_marks() {
        let source = "{% for m in messages %}{% if m.role == 'assistant' %}\
                      {% generation %}a{% endgeneration %}-{% generation %}{{ m.content }}{% endgeneration %}\
                      {% else %}{{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(learned(source, &conversation(), Learn::Answers), ["a", "ho", "a", "so"]);
        assert_eq!(learned(source, &conversation(), Learn::LastAnswer), ["a", "so"]);
        assert_eq!(learned(source, &conversation()[1..2], Learn::LastAnswer), ["a", "ho"]);
    }

    #[test]
    fn a_template_that_changes_what_it_said_is_refused() {
        let source = "{% for m in messages %}{{ m.content if loop.last else m.content | upper }};{% endfor %}";
        match spans(&template(source), &conversation(), Learn::Answers, DateTime::default()) {
            Err(ChatError::NotAPrefix { turns: 1, more: 2, offset: 0 }) => {}
            other => panic!("{other:?}"),
        }
        let source = "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' }};{% endfor %}";
        match spans(&template(source), &conversation(), Learn::Answers, DateTime::default()) {
            Err(ChatError::NotAPrefix { turns: 2, more: 4, offset: 3 }) => {}
            other => panic!("{other:?}"),
        }
        let source = "{% for m in messages %}{{ m.content }};{% endfor %}{{ messages | length }}{{ 'x' if add_generation_prompt }}";
        let error = spans(&template(source), &conversation()[..2], Learn::Answers, DateTime::default()).unwrap_err();
        assert!(error.to_string().ends_with("first difference is at byte 3"), "{error}");
    }

    #[test]
    fn a_conversation_without_an_answer_is_refused() {
        let tokenizer = Tokenizer::bytes();
        let got =
            example(&tokenizer, &ChatTemplate::plain(), &conversation()[..1], Learn::Answers, DateTime::default());
        assert!(matches!(got, Err(ChatError::NothingLearned)), "{got:?}");
    }

    #[test]
    fn a_token_over_the_border_is_learned() {
        let tokenizer = Tokenizer::bytes();
        let plain = ChatTemplate::plain();
        let got = example(&tokenizer, &plain, &conversation()[..2], Learn::Answers, DateTime::default()).unwrap();
        assert_eq!(got.learned_count(), " ho\n".len());
        assert_eq!(got.pieces(&tokenizer, 99).last().unwrap().text, " ho\n");
    }
}
