//! A [`Drawing`] as SVG inside a page: colours are classes of the page's style sheet, so one drawing serves light and dark.

use std::fmt::Write;

use super::drawing::{Anchor, Drawing, Ink, Mark};

/// Text that can stand in HTML and SVG, between tags and in attributes. Characters that XML does not allow become `?`.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            '\r' => {}
            control if control.is_control() => safe.push('?'),
            // These turn the direction of what follows, and with it what a reader believes to read.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => safe.push('?'),
            other => safe.push(other),
        }
    }
    safe
}

/// The drawing as one `<svg>`; `name` makes its ids unique in the page.
pub fn svg(drawing: &Drawing, name: &str) -> String {
    let name = escape(name);
    let mut text = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{name}-t {name}-d\"",
        number(drawing.width),
        number(drawing.height)
    );
    if let Some(hover) = &drawing.hover {
        let data = serde_json::json!({
            "l": hover.left, "r": hover.right, "t": hover.top, "b": hover.bottom, "at": hover.at, "rows": hover.rows,
        });
        write!(text, " data-hover=\"{}\"", escape(&data.to_string())).expect("text grows");
    }
    write!(
        text,
        "><title id=\"{name}-t\">{}</title><desc id=\"{name}-d\">{}</desc>",
        escape(&drawing.title),
        escape(&drawing.alternative)
    )
    .expect("text grows");
    for mark in &drawing.marks {
        put(&mut text, mark);
    }
    text.push_str("</svg>");
    text
}

fn put(text: &mut String, mark: &Mark) {
    match mark {
        Mark::Blocks { blocks, ink } => {
            write!(text, "<path class=\"f-{}\" d=\"", class(*ink)).expect("text grows");
            for [x, y, width, height] in blocks {
                let (w, h) = (number(*width), number(*height));
                write!(text, "M{} {}h{w}v{h}h-{w}z", number(*x), number(*y)).expect("text grows");
            }
            text.push_str("\"/>");
        }
        Mark::Line { points, ink, width, dashed } => {
            write!(text, "<path class=\"s-{}\" stroke-width=\"{}\"", class(*ink), number(*width)).expect("text grows");
            if *dashed {
                text.push_str(" stroke-dasharray=\"4 3\"");
            }
            write!(text, " d=\"{}\"/>", outline(points)).expect("text grows");
        }
        Mark::Area { points, ink, opacity } => write!(
            text,
            "<path class=\"f-{}\" fill-opacity=\"{}\" d=\"{}z\"/>",
            class(*ink),
            number(*opacity),
            outline(points)
        )
        .expect("text grows"),
        Mark::Words { x, y, text: words, size, ink, anchor, bold } => {
            let anchor = match anchor {
                Anchor::Start => "",
                Anchor::Middle => " text-anchor=\"middle\"",
                Anchor::End => " text-anchor=\"end\"",
            };
            let weight = if *bold { " font-weight=\"600\"" } else { "" };
            write!(
                text,
                "<text class=\"f-{}\" x=\"{}\" y=\"{}\" font-size=\"{}\"{anchor}{weight}>{}</text>",
                class(*ink),
                number(*x),
                number(*y),
                number(*size),
                escape(words)
            )
            .expect("text grows");
        }
    }
}

fn outline(points: &[(f64, f64)]) -> String {
    let mut path = String::with_capacity(points.len() * 10);
    for (place, (x, y)) in points.iter().enumerate() {
        write!(path, "{}{} {}", if place == 0 { 'M' } else { 'L' }, number(*x), number(*y)).expect("text grows");
    }
    // A single point is a short stroke: otherwise nobody sees it.
    if points.len() == 1 {
        path.push_str("h1.5");
    }
    path
}

fn class(ink: Ink) -> String {
    match ink {
        Ink::Ground => "ground".into(),
        Ink::Text => "text".into(),
        Ink::Muted => "muted".into(),
        Ink::Grid => "grid".into(),
        Ink::Series(which) => format!("c{}", which % 7),
        Ink::Bad => "bad".into(),
        Ink::Heat(step) => format!("h{}", step.min(9)),
    }
}

/// At most two decimals; what is no number stands at 0, for a broken coordinate breaks the whole path.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "0".into();
    }
    let text = format!("{:.2}", value + 0.0);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_wrote_cannot_leave_its_place() {
        assert_eq!(escape("</svg><script>\"'&"), "&lt;/svg&gt;&lt;script&gt;&quot;&#39;&amp;");
        assert_eq!(escape("a\u{0}b\u{202e}c"), "a?b?c");
    }

    #[test]
    fn coordinates_that_are_no_numbers_do_not_break_a_path() {
        assert_eq!(number(f64::NAN), "0");
        assert_eq!(number(-0.001), "0");
        assert_eq!(number(12.5), "12.5");
    }
}
