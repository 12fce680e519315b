//! `skein config`: what this machine gives, where each value comes from, and whether a file is right.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    cli::{
        args,
        context::Context,
        failure::{Document, Failure, Report},
        show::counted,
        table::{Column, Table},
    },
    config::{KEYS, Origin, Setting, Settings, nearest, shown},
};

pub fn run(args: &args::Config, context: &Context) -> Result<u8, Report> {
    match args {
        args::Config::Show { key, origin } => show(key.as_deref(), *origin, context),
        args::Config::Path => Ok(path(context)),
        args::Config::Check { file } => check(file.as_deref(), context),
    }
}

fn show(key: Option<&str>, origin: bool, context: &Context) -> Result<u8, Report> {
    let settings = chosen(&context.settings, key)?;
    let out = &context.out;
    if out.style().json {
        out.document(
            "config show",
            &json!({ "settings": settings.iter().map(|one| document(one)).collect::<Vec<_>>() }),
        );
        return Ok(0);
    }
    if let ([one], Some(key), false) = (&settings[..], key, origin)
        && one.key == key
    {
        out.print(&shown(one.key, &one.value));
        return Ok(0);
    }
    let mut columns = vec![Column::Left("KEY"), Column::Left("VALUE")];
    columns.extend(origin.then_some(Column::Left("FROM")));
    let mut table = Table::new(columns);
    for setting in settings {
        let mut row = vec![setting.key.to_string(), shown(setting.key, &setting.value)];
        row.extend(origin.then(|| from(setting)));
        table.row(row);
    }
    out.table(&table);
    Ok(0)
}

/// One key, those of a section, or all.
fn chosen<'a>(settings: &'a Settings, key: Option<&str>) -> Result<Vec<&'a Setting>, Report> {
    let Some(key) = key else { return Ok(settings.iter().collect()) };
    let section = format!("{key}.");
    let found: Vec<&Setting> =
        settings.iter().filter(|setting| setting.key == key || setting.key.starts_with(&section)).collect();
    if found.is_empty() {
        let near = nearest(key, KEYS.iter().map(|key| key.path.to_string()));
        return Err(Failure::UnknownKey { key: key.into(), place: "the command line".into(), hint: near.into() }.into());
    }
    Ok(found)
}

/// The layer that won, and what it covers.
fn from(setting: &Setting) -> String {
    let covered = |(value, origin): &(toml::Value, Origin)| format!("{} from {origin}", shown(setting.key, value));
    // That a default is covered goes without saying.
    let below: Vec<String> =
        setting.covered.iter().filter(|(_, origin)| *origin != Origin::Default).map(covered).collect();
    match below.is_empty() {
        true => setting.origin.to_string(),
        false => format!("{} (over {})", setting.origin, below.join(", ")),
    }
}

fn document(setting: &Setting) -> serde_json::Value {
    let value = |value: &toml::Value| match value {
        toml::Value::String(_) if setting.key == "watch.token" => json!(shown(setting.key, value).trim_matches('"')),
        other => serde_json::to_value(other).expect("settings are plain data"),
    };
    let covered: Vec<_> = setting
        .covered
        .iter()
        .map(|(covered, origin)| json!({ "value": value(covered), "origin": origin.to_string() }))
        .collect();
    json!({ "key": setting.key, "value": value(&setting.value), "origin": setting.origin.to_string(), "covered": covered })
}

fn path(context: &Context) -> u8 {
    let path = &context.config_file;
    if context.out.style().json {
        context.out.document("config path", &json!({ "path": path, "exists": path.exists() }));
        return 0;
    }
    context.out.print(&path.display().to_string());
    if !path.exists() {
        context.out.note("it is not there: every value is a default, a profile's, or from the environment");
    }
    0
}

fn check(file: Option<&Path>, context: &Context) -> Result<u8, Report> {
    let path = file.unwrap_or(&context.config_file);
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            return Err(Failure::DataUnreadable { path: path.display().to_string(), error: error.to_string() }.into());
        }
    };
    let problems: Vec<Failure> = Settings::problems(path, &text).into_iter().map(Failure::from).collect();
    let out = &context.out;
    if out.style().json {
        let documents: Vec<Document> = problems.iter().map(Failure::document).collect();
        out.document("config check", &json!({ "path": path, "problems": documents }));
    } else if problems.is_empty() {
        out.print(&format!("{}: nothing wrong", path.display()));
    } else {
        let count = problems.len();
        out.print(&format!("{}: {}", path.display(), counted(count as u64, "problem")));
    }
    let exit = if problems.is_empty() { 0 } else { 3 };
    if !out.style().json {
        problems.into_iter().for_each(|problem| out.report(&problem.into(), false));
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, Sources};

    fn settings() -> Settings {
        let environment = vec![
            ("SKEIN_GIVE__MEMORY".to_string(), "3GiB".to_string()),
            ("SKEIN_WATCH__TOKEN".to_string(), "0123456789abcdef".to_string()),
        ];
        let flags = vec![Flag { name: "--memory", key: "give.memory", text: "4GiB".into() }];
        Settings::load(&Sources { environment, flags, ..Sources::default() }).unwrap()
    }

    #[test]
    fn a_key_a_section_or_all() {
        let settings = settings();
        let count = |key| chosen(&settings, key).map(|found| found.len());
        assert_eq!(count(None).unwrap(), KEYS.len());
        assert_eq!(count(Some("give.memory")).unwrap(), 1);
        assert_eq!(count(Some("give")).unwrap(), 5);
        assert_eq!(count(Some("give.memori")).unwrap_err().failure.code(), "SK140");
        assert!(count(Some("giv")).is_err());
    }

    #[test]
    fn the_layers_below_are_named_and_secrets_are_not() {
        let settings = settings();
        let memory = settings.get("give.memory").unwrap();
        assert_eq!(from(memory), "flag --memory (over \"3GiB\" from SKEIN_GIVE__MEMORY)");
        assert_eq!(from(settings.get("net.port").unwrap()), "default");
        let token = document(settings.get("watch.token").unwrap()).to_string();
        assert!(!token.contains("0123456789abcdef"), "{token}");
    }
}
