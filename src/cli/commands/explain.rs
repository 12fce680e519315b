//! `skein explain`: the page of a word or of an error code. All of them are in the program.

use serde_json::json;

use crate::{
    cli::{
        args,
        context::Context,
        failure::{self, Failure, Report, TEXTS},
        glossary,
        table::{Column, Table},
    },
    config::nearest,
};

pub fn run(args: &args::Explain, context: &Context) -> Result<u8, Report> {
    let out = &context.out;
    let Some(word) = &args.word else {
        list(context);
        return Ok(0);
    };
    let page = page(word)?;
    if out.style().json {
        out.document("explain", &json!({ "word": word, "page": page }));
    } else {
        out.print(page.trim_end());
    }
    Ok(0)
}

fn list(context: &Context) {
    if context.out.style().json {
        let words: Vec<&str> = glossary::all().into_iter().map(|word| word.word).collect();
        let codes: Vec<_> = TEXTS.iter().map(|text| json!({ "code": text.code, "what": text.what })).collect();
        return context.out.document("explain", &json!({ "words": words, "codes": codes }));
    }
    let mut table = Table::new(vec![Column::Left("PAGE"), Column::Left("ABOUT")]);
    for word in glossary::all() {
        table.row(vec![word.word.into(), word.short().into()]);
    }
    for text in TEXTS {
        table.row(vec![text.code.into(), text.what.into()]);
    }
    context.out.table(&table);
}

fn page(word: &str) -> Result<String, Report> {
    let code = word.to_uppercase();
    if let Some(text) = TEXTS.iter().find(|text| text.code == code) {
        return Ok(format!("{code}: {}", failure::page(text)));
    }
    if let Some(found) = glossary::find(word) {
        return Ok(format!("{}{}\n\n{}\n", found.word, also(found.also), found.page));
    }
    let pages = glossary::names().map(str::to_string).chain(TEXTS.iter().map(|text| text.code.to_string()));
    let asked = word.to_lowercase();
    let hint = nearest(if code.starts_with("SK") { &code } else { &asked }, pages);
    Err(Failure::NoPage { word: word.into(), hint: hint.into() }.into())
}

/// Other names of a word, beside it.
fn also(names: &[&str]) -> String {
    if names.is_empty() { String::new() } else { format!("  (also: {})", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words_have_pages_and_near_misses_a_hint() {
        assert!(page("sk201").unwrap().starts_with("SK201: None of the {count} bootstrap peers answers."));
        assert!(page("Staleness").unwrap().starts_with("staleness\n\nThe age of a gradient"));
        assert!(page("GOODPUT").unwrap().starts_with("goodput\n\nThe part of the work done that counts"));
        assert!(page("in_flight_max").unwrap().starts_with("window  (also: in_flight_max"));
        let failure = page("Goodputt").unwrap_err().failure;
        assert!(failure.why().ends_with("Did you mean goodput?"), "{}", failure.why());
        let failure = page("stalenes").unwrap_err().failure;
        assert!(failure.code() == "SK313" && failure.why().ends_with("Did you mean staleness?"), "{}", failure.why());
    }
}
