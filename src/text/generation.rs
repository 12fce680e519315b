//! `{% generation %}` … `{% endgeneration %}`: how a template itself marks what the assistant wrote. In: the source of a template.
//! Out: a source without these two tags, which writes a mark where they stood.
//!
//! Each becomes tags that the engine knows, and keeps the `-` and `+` that say what happens to the white space around it. The
//! marks are variables: a rendering that asks for no spans leaves them empty.

use std::ops::Range;

pub(super) const BEGIN: &str = "skein_generation_begin";
pub(super) const END: &str = "skein_generation_end";

/// The source to compile, and whether it has such marks.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match Tag::read(rest) {
            Some(tag) => {
                found |= !tag.is_end;
                tag.write(&mut out);
                rest = &rest[tag.len..];
            }
            None => {
                out.push_str("{%");
                rest = &rest[2..];
            }
        }
    }
    out.push_str(rest);
    (out, found)
}

struct Tag<'a> {
    is_end: bool,
    /// `-`, `+` or nothing, at its left and right end.
    left: &'a str,
    right: &'a str,
    len: usize,
}

impl<'a> Tag<'a> {
    fn read(text: &'a str) -> Option<Tag<'a>> {
        let close = text.find("%}")?;
        let inner = text.get(2..close)?;
        let sign = |c: char| matches!(c, '-' | '+');
        let left = &inner[..usize::from(inner.starts_with(sign))];
        let inner = &inner[left.len()..];
        let right = &inner[inner.len() - usize::from(inner.ends_with(sign))..];
        let name = inner[..inner.len() - right.len()].trim();
        let is_end = name == "endgeneration";
        (is_end || name == "generation").then_some(Tag { is_end, left, right, len: close + 2 })
    }

    /// The part between the two tags has a scope of its own, as in the engine that the tags come from.
    fn write(&self, out: &mut String) {
        let Tag { left, right, .. } = self;
        out.push_str(&if self.is_end {
            format!("{{%{left} endwith %}}{{% if true %}}{{{{ {END} }}}}{{% endif {right}%}}")
        } else {
            format!("{{%{left} if true %}}{{{{ {BEGIN} }}}}{{% endif %}}{{% with {BEGIN}={BEGIN} {right}%}}")
        });
    }
}

/// The text without the marks, and what stood between them, in bytes.
pub(super) fn spans(marked: &str, begin: char, end: char) -> (String, Vec<Range<usize>>) {
    let (mut text, mut spans, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for sign in marked.chars() {
        if sign == begin {
            open.get_or_insert(text.len());
        } else if sign == end {
            spans.extend(open.take().map(|start| start..text.len()));
        } else {
            text.push(sign);
        }
    }
    (text, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_tags_are_rewritten() {
        let source = "{% for m in x %}{%- if generation %}{{ generation }}{% endif %}{% endfor %}";
        assert_eq!(rewrite(source), (source.to_string(), false));
        let (text, found) = rewrite("a\n  {%- generation +%}b{%endgeneration-%}\n{% x");
        assert!(found && text.starts_with("a\n  {%- if true %}") && text.ends_with("{% endif -%}\n{% x"), "{text}");
        assert!(text.contains("+%}b{% endwith"), "{text}");
    }

    #[test]
    fn spans_are_in_bytes_of_the_text_without_marks() {
        let (text, spans) = spans("é<ab>c<d>", '<', '>');
        assert_eq!((text.as_str(), spans), ("éabcd", vec![2..4, 5..6]));
    }
}
