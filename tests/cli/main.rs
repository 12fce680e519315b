//! The program as a person or a script calls it: arguments in; stdout, stderr and the exit code out. No network.

mod simulate;

#[path = "../common/deadline.rs"]
#[allow(dead_code, reason = "what this binary does not need, the other does")]
mod deadline;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// The program with a home of its own and nothing of this machine's environment.
fn skein(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    command.env_clear().env("SKEIN_HOME", home).env("LANG", "C.UTF-8").stdin(Stdio::null()).current_dir(home);
    command
}

struct Said {
    exit: i32,
    stdout: String,
    stderr: String,
}

fn said(command: &mut Command) -> Said {
    said_in(deadline::output(command))
}

fn said_in(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).expect("what we print is UTF-8");
    Said { exit: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn ask(home: &Path, args: &[&str]) -> Said {
    said(skein(home).args(args))
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}", said.stdout))
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn help_is_the_first_screen_and_touches_no_disk() {
    let home = home();
    for args in [&["--help"][..], &["-h"]] {
        let said = ask(home.path(), args);
        assert_eq!((said.exit, said.stderr.as_str()), (0, ""), "{args:?}");
        assert!(said.stdout.starts_with("skein 0.1.0 — train a language model together"), "{}", said.stdout);
        for group in ["Start here", "Work", "Look", "Keep"] {
            assert!(said.stdout.contains(group), "{group}");
        }
        assert!(said.stdout.lines().count() <= 24 && said.stdout.lines().all(|line| line.chars().count() <= 80));
    }
    let nothing = ask(home.path(), &[]);
    assert!(nothing.exit == 2 && nothing.stderr.contains("Start here"), "{}", nothing.stderr);
    for command in [
        "demo", "train", "join", "host", "chat", "serve", "generate", "export", "status", "peers", "stop", "invite",
        "explain",
    ] {
        let said = ask(home.path(), &[command, "--help"]);
        assert!(said.exit == 0 && said.stdout.contains("Examples\n"), "{command}: {}", said.stdout);
    }
    assert_eq!(files(home.path()), 0);
}

#[test]
fn an_unknown_command_is_wrong_usage_with_a_hint() {
    let home = home();
    let said = ask(home.path(), &["statsu"]);
    assert_eq!((said.exit, said.stdout.as_str()), (2, ""));
    assert!(said.stderr.contains("status"), "{}", said.stderr);
    let said = ask(home.path(), &["statsu", "--json"]);
    assert_eq!((said.exit, &json(&said)["error"]["code"]), (2, &"SK100".into()));
    assert_eq!(files(home.path()), 0);
}

#[test]
fn codes_and_words_are_explained() {
    let home = home();
    let code = ask(home.path(), &["explain", "SK201"]);
    assert_eq!(code.exit, 0);
    assert!(
        code.stdout.contains("bootstrap peers") && code.stdout.contains("- next: `skein invite`"),
        "{}",
        code.stdout
    );
    assert!(ask(home.path(), &["explain", "staleness"]).stdout.contains("age of a gradient"));
    let all = ask(home.path(), &["explain"]);
    assert!(all.stdout.contains("\nSK201\t") && all.stdout.contains("\nstaleness\t"), "{}", all.stdout);
    let wrong = ask(home.path(), &["explain", "stalenes", "--json"]);
    assert_eq!((wrong.exit, &json(&wrong)["error"]["code"]), (2, &"SK313".into()));
}

#[test]
fn every_setting_says_where_it_comes_from() {
    let home = home();
    fs::write(home.path().join("config.toml"), "[give]\nmemory = \"2GiB\"\nthreads = 3\n").unwrap();
    let mut command = skein(home.path());
    let said = said(command.env("SKEIN_GIVE__MEMORY", "3GiB").args(["config", "show", "--origin"]));
    assert_eq!(said.exit, 0, "{}", said.stderr);
    let line = |key: &str| said.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(said.stdout.lines().next(), Some("KEY\tVALUE\tFROM"));
    let memory = line("give.memory");
    assert!(memory.starts_with("give.memory\t\"3GiB\"\tSKEIN_GIVE__MEMORY (over \"2GiB\" from "), "{memory}");
    assert!(line("give.threads").ends_with("config.toml, line 3"), "{}", line("give.threads"));
    assert_eq!(line("net.port"), "net.port\t4747\tdefault");
    let one = ask(home.path(), &["config", "show", "give.threads"]);
    assert_eq!(one.stdout, "3\n");
}

#[test]
fn all_problems_of_a_configuration_come_at_once_even_where_it_is_the_one_in_use() {
    let home = home();
    fs::write(home.path().join("config.toml"), "[give]\nmemory = 4\nthreads = -1\n[nett]\nport = 1\n").unwrap();
    let said = ask(home.path(), &["config", "check"]);
    assert_eq!(said.exit, 3);
    assert!(said.stdout.contains("3 problems"), "{}", said.stdout);
    for code in ["SK140", "SK141", "SK142"] {
        assert!(said.stderr.contains(code), "{code}: {}", said.stderr);
    }
    let document = json(&ask(home.path(), &["config", "check", "--json"]));
    assert_eq!(document["problems"].as_array().unwrap().len(), 3);
    assert_eq!(ask(home.path(), &["status"]).exit, 3);
    fs::write(home.path().join("config.toml"), "[give]\nmemory = \"4GiB\"\n").unwrap();
    assert_eq!(ask(home.path(), &["config", "check"]).exit, 0);
}

#[test]
fn completions_are_a_script_for_the_shell() {
    let home = home();
    for (shell, word) in [
        ("bash", "complete -F _skein"),
        ("zsh", "#compdef skein"),
        ("fish", "complete -c skein"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let said = ask(home.path(), &["completions", shell]);
        assert!(
            said.exit == 0 && said.stdout.contains(word),
            "{shell}: {}",
            &said.stdout[..said.stdout.len().min(200)]
        );
    }
    assert_eq!(files(home.path()), 0);
}

#[test]
fn a_key_is_made_once_and_is_its_owners_alone() {
    let home = home();
    let dir = home.path().join("deep").join("home");
    let dir_text = dir.to_str().unwrap();
    let first = ask(home.path(), &["--home", dir_text, "key", "show", "--json"]);
    assert_eq!(first.exit, 0, "{}", first.stderr);
    let first = json(&first);
    assert_eq!(first["made_now"], true);
    assert!(first["peer"].as_str().unwrap().starts_with("12D3KooW"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
    let again = json(&ask(home.path(), &["--home", dir_text, "key", "show", "--json"]));
    assert_eq!((&again["peer"], &again["made_now"]), (&first["peer"], &false.into()));
}

#[test]
fn without_a_peer_there_is_nobody_to_ask() {
    let home = home();
    for args in [
        &["status"][..],
        &["peers"],
        &["stop"],
        &["invite"],
        &["export", "tiny", "--out", "model"],
        &["generate", "tiny", "Once"],
        &["status", "--wait", "ready"],
    ] {
        let said = ask(home.path(), args);
        assert_eq!((said.exit, said.stdout.as_str()), (4, ""), "{args:?}");
        assert!(said.stderr.contains("No peer is running here.") && said.stderr.contains("SK701"), "{}", said.stderr);
    }
    let said = ask(home.path(), &["status", "--json"]);
    let document = json(&said);
    assert_eq!((said.exit, &document["error"]["code"], &document["error"]["exit"]), (4, &"SK701".into(), &4.into()));
    let late = ask(home.path(), &["status", "--wait", "ready", "--timeout", "1s", "--json"]);
    assert_eq!((late.exit, &json(&late)["error"]["code"]), (1, &"SK705".into()));
}

#[test]
fn a_control_file_that_stayed_behind_is_a_closed_door() {
    let home = home();
    // Nobody listens at the discard port of loopback.
    let control = r#"{"address":"127.0.0.1:9","token":"x","pid":1}"#;
    fs::write(home.path().join("control"), control).unwrap();
    let said = ask(home.path(), &["status"]);
    assert_eq!(said.exit, 4);
    assert!(said.stderr.contains("127.0.0.1:9"), "{}", said.stderr);
}

#[test]
fn a_new_manifest_is_clean() {
    let home = home();
    for preset in ["demo", "tiny", "small-124m", "350m"] {
        let made = ask(home.path(), &["run", "new", "my-run", "--preset", preset, "--out", "my.toml", "--force"]);
        assert_eq!((made.exit, made.stdout.as_str()), (0, "my.toml\n"), "{}", made.stderr);
        let said = ask(home.path(), &["run", "check", "my.toml"]);
        assert!(said.exit == 0 && said.stdout.starts_with("my.toml: nothing wrong\n"), "{preset}: {}", said.stdout);
        assert!(said.stdout.contains("smallest useful peer: "), "{}", said.stdout);
        let shown = ask(home.path(), &["run", "show", "my.toml"]);
        assert!(shown.exit == 0 && shown.stdout.contains("name = \"my-run\""), "{}", shown.stdout);
    }
    let again = ask(home.path(), &["run", "new", "--out", "my.toml"]);
    assert!(again.exit == 2 && again.stderr.contains("SK314"), "{}", again.stderr);
    let printed = ask(home.path(), &["run", "new", "other", "--preset", "tiny"]);
    fs::write(home.path().join("other.toml"), &printed.stdout).unwrap();
    assert_eq!(ask(home.path(), &["run", "check", "other.toml"]).exit, 0);
    let wrong = ask(home.path(), &["run", "new", "--preset", "tinny", "--json"]);
    assert_eq!((wrong.exit, &json(&wrong)["error"]["code"]), (3, &"SK145".into()));
}

#[test]
fn all_problems_of_a_manifest_come_at_once_with_their_lines() {
    let home = home();
    let text = ask(home.path(), &["run", "new", "my-run", "--preset", "tiny"]).stdout;
    let line_of = |text: &str, start: &str| text.lines().position(|line| line.starts_with(start)).unwrap() + 1;
    let broken: String = text
        .lines()
        .map(|line| match line.split('=').next().unwrap().trim() {
            "lr" => "lr = -1.0\n".to_string(),
            "micro_batch" => "micro_batch = 0\n".to_string(),
            _ => format!("{line}\n"),
        })
        .collect();
    let path = home.path().join("my.toml");
    fs::write(&path, &broken).unwrap();
    let said = ask(home.path(), &["run", "check", "my.toml"]);
    assert_eq!(said.exit, 3, "{}{}", said.stdout, said.stderr);
    for key in ["lr", "micro_batch"] {
        let line = format!("{:>4} | {key} = ", line_of(&broken, &format!("{key} =")));
        assert!(said.stdout.contains(&line), "{line}: {}", said.stdout);
    }
    let document = json(&ask(home.path(), &["run", "check", "my.toml", "--json"]));
    let keys: Vec<&str> = document["problems"].as_array().unwrap().iter().map(|p| p["key"].as_str().unwrap()).collect();
    assert!(keys.contains(&"optimizer.lr") && keys.contains(&"train.micro_batch"), "{keys:?}");
    fs::write(&path, "[run\nname = 1").unwrap();
    let said = ask(home.path(), &["run", "check", "my.toml"]);
    assert!(said.exit == 3 && said.stdout.contains("SK146"), "{}", said.stdout);
    assert_eq!(ask(home.path(), &["run", "show", "my.toml"]).exit, 3);
    assert_eq!(ask(home.path(), &["run", "show", "nothing"]).exit, 2);
}

#[test]
fn what_is_no_model_cannot_be_asked() {
    let home = home();
    let empty = home.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for folder in ["./empty", "./missing"] {
        let said = ask(home.path(), &["generate", folder, "Once"]);
        assert_eq!((said.exit, said.stdout.as_str()), (7, ""), "{folder}");
        assert!(said.stderr.contains("SK403") && said.stderr.contains(folder), "{}", said.stderr);
    }
    let said = ask(home.path(), &["generate", "./empty", "Once", "--json"]);
    assert_eq!((said.exit, &json(&said)["error"]["code"]), (7, &"SK403".into()));
    for flags in [&["--temperature", "-1"][..], &["--top-p", "0"]] {
        let said = said_of_generate(home.path(), flags);
        assert_eq!(said.exit, 2, "{flags:?}: {}", said.stderr);
    }
}

fn said_of_generate(home: &Path, flags: &[&str]) -> Said {
    let with_value = format!("{}={}", flags[0], flags[1]);
    ask(home, &["generate", "./empty", "Once", &with_value])
}

/// A small saved model whose weights are those of a seed.
fn model(dir: &Path, vocab: u32) {
    use skein_pipeline::{
        compute::hf,
        model::{StageModel, init},
    };
    fs::create_dir(dir).unwrap();
    let config = skein_protocol::run::ModelConfig {
        hidden: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        ffn: 32,
        vocab,
        context: 64,
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
    let weights = init::initial(&model, 3);
    hf::write(dir, skein_protocol::run::Family::Llama, &[(model, weights)]).unwrap();
}

#[test]
fn a_saved_model_continues_a_prompt_and_a_seed_repeats_it() {
    let home = home();
    model(&home.path().join("model"), 256);
    let args = ["generate", "./model", "The fox", "--max-tokens", "20", "--seed", "7"];
    let said = ask(home.path(), &args);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    assert!(
        said.stdout.starts_with("The fox") && said.stdout.ends_with('\n') && said.stdout.len() > 20,
        "{}",
        said.stdout
    );
    assert_eq!(said.stdout, ask(home.path(), &args).stdout);
    let document = json(&ask(home.path(), &[&args[..], &["--json", "--stats"]].concat()));
    assert_eq!((&document["tokens"], &document["seed"], &document["ended"]), (&20.into(), &7.into(), &"length".into()));
    assert_eq!(format!("The fox{}\n", document["text"].as_str().unwrap()), said.stdout);
    let short = ask(home.path(), &["generate", "./model", &"long ".repeat(20)]);
    assert!(short.exit == 2 && short.stderr.contains("this model reads 64"), "{}", short.stderr);
}

#[test]
fn an_invite_is_read_without_asking_anybody() {
    let home = home();
    for (word, exit, code) in [("tiny-verse", 2, "SK301"), ("skein1abcdef", 6, "SK302")] {
        let said = ask(home.path(), &["invite", "--show", word, "--json"]);
        assert_eq!((said.exit, &json(&said)["error"]["code"]), (exit, &code.into()), "{word}");
    }
}

const TALE: &str = "The fox wished to own the moon. ";

/// `train` of the smallest run to its end, alone and on this machine.
fn trains_once(home: &Path) -> Command {
    fs::write(home.join("tale.txt"), TALE.repeat(100)).unwrap();
    let mut command = skein(home);
    command.env("SKEIN_NET__LISTEN", "127.0.0.1").env("SKEIN_NET__PORT", "0").env("SKEIN_NET__LAN", "false");
    command.env("SKEIN_WATCH__LISTEN", "127.0.0.1:0").args(["train", "--data", "tale.txt"]);
    command
}

/// `train` with data that can be used, up to where `args` are wrong.
fn train(home: &Path, args: &[&str]) -> Said {
    fs::write(home.join("tale.txt"), TALE.repeat(100)).unwrap();
    let common = ["train", "--data", "tale.txt", "--json"];
    let mut command = skein(home);
    command
        .env("SKEIN_NET__LISTEN", "127.0.0.1")
        .env("SKEIN_NET__LAN", "false")
        .env("SKEIN_WATCH__LISTEN", "127.0.0.1:0");
    said(command.args(common).args(args))
}

fn refusal(said: &Said) -> (i32, String) {
    let last = said.stdout.lines().last().unwrap_or_else(|| panic!("{}", said.stderr));
    let document: Value = serde_json::from_str(last).unwrap();
    let error = &document["error"];
    for part in ["what", "why"] {
        assert!(!error[part].as_str().unwrap().is_empty(), "{part}: {error}");
    }
    assert!(!error["next"].as_array().unwrap().is_empty(), "{error}");
    (said.exit, error["code"].as_str().unwrap().to_string())
}

#[test]
fn data_that_is_none_is_refused_before_anything_is_made() {
    let home = home();
    let dir = home.path();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("nothing.txt"), "").unwrap();
    fs::write(dir.join("no-text.jsonl"), "{\"title\":1}\n").unwrap();
    fs::write(dir.join("latin.txt"), b"h\xf6ren").unwrap();
    fs::write(dir.join("binary.txt"), [0, 159, 146, 150]).unwrap();
    for (data, code) in [
        ("missing.txt", "SK413"),
        ("empty", "SK404"),
        ("nothing.txt", "SK404"),
        ("no-text.jsonl", "SK404"),
        ("latin.txt", "SK405"),
        ("binary.txt", "SK405"),
    ] {
        let said = ask(dir, &["train", "--data", data, "--json"]);
        assert_eq!(refusal(&said), (7, code.into()), "{data}: {}", said.stdout);
    }
    assert!(!dir.join("key").exists() && !dir.join("runs").exists());
}

#[test]
fn what_this_machine_cannot_give_is_said_before_the_run_begins() {
    let home = home();
    let dir = home.path();
    assert_eq!(refusal(&train(dir, &["--preset", "350m", "--memory", "256MiB"])), (4, "SK125".into()));
    let most = std::thread::available_parallelism().unwrap();
    let said = train(dir, &["--preset", "demo", "--threads", "1024"]);
    assert_eq!(refusal(&said), (4, "SK122".into()), "{}", said.stderr);
    assert!(said.stdout.contains(&format!("skein train --threads {most}")), "the most that would do: {}", said.stdout);
    let said = train(dir, &["--preset", "demo", "--memory", "1000000GiB"]);
    assert_eq!(refusal(&said), (4, "SK128".into()), "{}", said.stderr);
    assert!(said.stdout.contains("skein train --memory "), "the most that would do: {}", said.stdout);
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let said = train(dir, &["--preset", "demo", "--memory", "256MiB", "--port", &port]);
    assert_eq!(refusal(&said), (4, "SK101".into()), "{}", said.stderr);
    let lock = skein::home::Home::at(dir).lock().unwrap();
    assert_eq!(refusal(&train(dir, &["--preset", "demo"])), (4, "SK110".into()));
    drop(lock);
    // A home inside a file cannot be made, whoever asks.
    let inside = dir.join("tale.txt").join("home").display().to_string();
    assert_eq!(refusal(&train(dir, &["--preset", "demo", "--home", &inside])), (4, "SK127".into()));
    assert!(!dir.join("runs").exists(), "no run was begun");
}

#[test]
fn a_control_address_that_was_set_by_hand_and_is_taken_is_said() {
    let home = home();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    fs::write(home.path().join("config.toml"), format!("[watch]\nlisten = \"{address}\"\n")).unwrap();
    fs::write(home.path().join("tale.txt"), TALE.repeat(100)).unwrap();
    let mut command = skein(home.path());
    command.env("SKEIN_NET__LISTEN", "127.0.0.1").env("SKEIN_NET__PORT", "0").env("SKEIN_NET__LAN", "false");
    let said = said(command.args(["train", "--data", "tale.txt", "--preset", "demo", "--json"]));
    assert_eq!(refusal(&said), (4, "SK103".into()), "{}", said.stderr);
    assert!(said.stdout.contains(&address) && said.stdout.contains("config.toml:2"), "{}", said.stdout);
}

#[test]
fn a_key_that_is_none_or_that_others_can_read_is_refused() {
    let home = home();
    let key = home.path().join("key");
    fs::write(&key, "0123456789abcdef\n").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let said = ask(home.path(), &["key", "show", "--json"]);
        assert_eq!(refusal(&said), (4, "SK112".into()));
        assert!(said.stdout.contains("0644"), "{}", said.stdout);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(refusal(&ask(home.path(), &["key", "show", "--json"])), (3, "SK113".into()));
    assert_eq!(fs::read_to_string(&key).unwrap(), "0123456789abcdef\n", "it is never overwritten");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_was_asked_for_by_name_is_never_replaced() {
    let home = home();
    assert_eq!(refusal(&train(home.path(), &["--preset", "demo", "--device", "cuda"])), (2, "SK123".into()));
}

#[test]
fn settings_that_exclude_each_other_are_refused() {
    let home = home();
    let dir = home.path();
    let host = ask(dir, &["host", "--stage", "1", "--profile", "observer", "--json"]);
    assert_eq!(refusal(&host), (3, "SK143".into()));
    assert!(host.stdout.contains("--stage") && host.stdout.contains("profile observer"), "{}", host.stdout);
    fs::write(dir.join("config.toml"), "[give]\nstage = 1\nroles = []\n").unwrap();
    assert_eq!(refusal(&ask(dir, &["join", "--json"])), (3, "SK143".into()));
}

#[test]
fn a_manifest_that_is_wrong_changed_or_of_somebody_else_is_refused() {
    use skein_protocol::{
        key::Key,
        run::text::{Signature, write, write_signed},
    };
    let home = home();
    let dir = home.path();
    let mut manifest = skein_protocol::run::preset("demo").unwrap();
    manifest.run.owner = Key::from_secret([7; 32]).peer();
    fs::write(dir.join("theirs.toml"), write(&manifest)).unwrap();
    assert_eq!(refusal(&train(dir, &["--run", "theirs.toml"])), (6, "SK315".into()));
    let signature = Signature { peer: manifest.run.owner, signature: [0xab; 64] };
    fs::write(dir.join("changed.toml"), write_signed(&manifest, &signature)).unwrap();
    let shown = ask(dir, &["run", "show", "changed.toml", "--json"]);
    assert_eq!(refusal(&shown), (9, "SK311".into()));
    manifest.train.micro_batch = 0;
    fs::write(dir.join("wrong.toml"), write(&manifest)).unwrap();
    let wrong = train(dir, &["--run", "wrong.toml"]);
    assert_eq!(refusal(&wrong), (3, "SK147".into()));
    assert!(wrong.stdout.contains("train.micro_batch"), "{}", wrong.stdout);
}

#[test]
fn a_model_of_another_family_or_without_a_tokenizer_is_refused() {
    let home = home();
    let dir = home.path().join("model");
    model(&dir, 255);
    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    let tokenizers: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let gpt2 = config.replace("LlamaForCausalLM", "GPT2LMHeadModel").replace("\"llama\"", "\"gpt2\"");
    fs::write(dir.join("config.json"), gpt2).unwrap();
    let other = ask(home.path(), &["generate", "./model", "Once", "--json"]);
    assert_eq!(refusal(&other), (7, "SK407".into()));
    assert!(other.stdout.contains("GPT2LMHeadModel"), "{}", other.stdout);
    fs::write(dir.join("config.json"), config).unwrap();
    let remove = || {
        for path in tokenizers.iter().filter(|path| path.to_string_lossy().contains("tokenizer")) {
            fs::remove_file(path).unwrap();
        }
    };
    remove();
    assert_eq!(refusal(&ask(home.path(), &["generate", "./model", "Once", "--json"])), (7, "SK401".into()));
    fs::remove_dir_all(&dir).unwrap();
    model(&dir, 256);
    remove();
    let guessed = ask(home.path(), &["generate", "./model", "Once"]);
    assert!(guessed.exit == 0 && guessed.stderr.contains("taken for bytes"), "{}", guessed.stderr);
}

#[test]
fn a_manifest_in_json_is_a_document() {
    let home = home();
    let new = json(&ask(home.path(), &["run", "new", "my-run", "--preset", "tiny", "--json"]));
    assert_eq!((&new["command"], &new["manifest"]["run"]["name"]), (&"run new".into(), &"my-run".into()));
    let dry = train(home.path(), &["--preset", "demo", "--dry-run"]);
    let dry = json(&dry);
    assert!(dry["run"].as_str().unwrap().starts_with("b3:"), "{dry}");
    assert_eq!((&dry["command"], &dry["manifest"]["run"]["name"]), (&"train".into(), &"tale-demo".into()));
}

#[test]
fn what_was_not_saved_is_no_good_end() {
    let home = home();
    let dir = home.path();
    let mut command = trains_once(dir);
    command.args(["--preset", "demo", "--steps", "1"]);
    // A folder inside a file cannot be made, whoever asks.
    command.env("SKEIN_STORE__PATH", dir.join("tale.txt").join("checkpoints"));
    let said = said(&mut command);
    assert_eq!(said.exit, 4, "{}", said.stderr);
    assert!(said.stderr.contains("is not saved") && said.stderr.contains("SK127"), "{}", said.stderr);
    assert!(!dir.join("runs/tale-demo/checkpoints").exists(), "they were to go elsewhere");
}

#[test]
fn what_is_wrong_with_checkpoints_is_said_with_its_code() {
    let home = home();
    let dir = home.path();
    let place = dir.join("large");
    let run = |args: &[&str]| said(trains_once(dir).env("SKEIN_STORE__PATH", &place).args(args));
    let first = run(&["--preset", "demo", "--steps", "1"]);
    assert_eq!(first.exit, 0, "{}", first.stderr);
    let mine = fs::read_dir(&place).unwrap().next().unwrap().unwrap().path();
    let stage = mine.join("tale-demo").join("stage-0");
    fs::write(stage.join("9999999999.state"), "no state").unwrap();
    fs::write(stage.join(".torn.unfinished"), "half").unwrap();
    let again = run(&["--run", "tale-demo"]);
    assert!(
        again.stderr.contains("code=SK408") && again.stderr.contains("an older one (own step "),
        "{}",
        again.stderr
    );
    assert!(again.stderr.contains("code=SK409") && again.stderr.contains("1 unfinished file was"), "{}", again.stderr);
}

#[test]
fn wrong_values_say_what_to_type_instead() {
    let home = home();
    let dir = home.path();
    for (args, exit, code, next) in [
        (&["--memory", "4"][..], 3, "SK142", "--memory 4MiB"),
        (&["--memory", "1MiB"], 3, "SK141", "--memory auto"),
        (&["--preset", "tinny"], 3, "SK145", "skein config show --profile laptop"),
        (&["--run-name", "No Good"], 2, "SK100", "skein --help"),
        (&["--stages", "99"], 2, "SK100", "skein --help"),
        (&["--epochs", "0"], 2, "SK100", "skein --help"),
        (&["--run", "unheard-of"], 2, "SK312", "skein join skein1…"),
    ] {
        let said = train(dir, args);
        assert_eq!(refusal(&said), (exit, code.into()), "{args:?}: {}", said.stderr);
        let document: Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(document["error"]["next"][0], next, "{args:?}");
    }
}

#[test]
fn who_has_no_usable_invite_is_told_how_to_get_one() {
    let home = home();
    for (args, exit, code) in [
        (&["join"][..], 2, "SK316"),
        (&["join", "tiny-verse"], 2, "SK312"),
        (&["join", "skein1abcdef"], 6, "SK302"),
        (&["host", "skien1abcdefghabcdefghabcdefghabcdefghabcdefgh", "--stage", "0"], 2, "SK301"),
    ] {
        let said = ask(home.path(), &[args, &["--json"]].concat());
        assert_eq!(refusal(&said), (exit, code.into()), "{args:?}");
    }
    assert_eq!(files(home.path()), 0);
}

#[test]
fn an_invite_of_peers_that_are_gone_ends_with_what_each_answered() {
    use skein_protocol::invite::{Address, Invite, InvitePeer, Transport, VERSION};
    let home = home();
    let address = Address { transport: Transport::Quic, ip: [127, 0, 0, 1].into(), port: 9 };
    let id = skein_protocol::key::Key::from_secret([9; 32]).peer();
    let peers = vec![InvitePeer { id, addresses: vec![address] }];
    let invite = Invite { version: VERSION, run: Default::default(), label: "gone".into(), peers, token: None };
    let mut command = skein(home.path());
    command.env("SKEIN_NET__LISTEN", "127.0.0.1").env("SKEIN_NET__PORT", "0").env("SKEIN_NET__LAN", "false");
    let said = said(command.args(["join", &invite.encode().unwrap(), "--wait", "1s", "--json"]));
    assert_eq!(refusal(&said), (5, "SK201".into()), "{}", said.stderr);
    assert!(said.stdout.contains("/ip4/127.0.0.1/udp/9/quic-v1"), "{}", said.stdout);
}

/// What the libraries beneath say is no news for a person.
#[test]
fn only_our_own_words_are_on_the_terminal() {
    let home = home();
    let said = said(trains_once(home.path()).args(["--preset", "demo", "--steps", "1"]));
    assert_eq!(said.exit, 0, "{}", said.stderr);
    assert!(!said.stderr.contains("libp2p") && !said.stderr.contains("yamux"), "{}", said.stderr);
    assert!(!said.stderr.contains("port  0 ") && !said.stderr.contains("left out"), "{}", said.stderr);
    assert!(said.stderr.contains("from 1 document\n") && said.stderr.contains("left in good order"), "{}", said.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_does_not_fit_is_a_failure() {
    let home = home();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let child = skein(home.path()).args(["run", "new"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let said = said_in(deadline::output_of(child));
    assert!(said.exit == 4 && said.stderr.contains("SK129"), "{}", said.stderr);
}

/// A file's name, and so an argument, may be any bytes.
#[cfg(unix)]
#[test]
fn what_is_no_text_is_wrong_usage() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let (home, odd) = (home(), OsStr::from_bytes(b"f\xf6x"));
    let argument = said(skein(home.path()).arg("join").arg(odd).arg("--json"));
    assert_eq!((argument.exit, &json(&argument)["error"]["code"]), (2, &"SK100".into()), "{}", argument.stderr);
    assert_eq!(said(skein(home.path()).arg("--wait").arg(odd)).exit, 2);
    let value = said(skein(home.path()).env("SKEIN_LOG__FILE", odd).args(["key", "show", "--json"]));
    assert_eq!((value.exit, &json(&value)["error"]["code"]), (2, &"SK100".into()), "{}", value.stderr);
    // What is not ours is nobody's business, and a folder may be called anything.
    let folder = home.path().join(odd);
    let shown =
        said(skein(home.path()).env("LETTER", odd).env(odd, "x").env("SKEIN_HOME", &folder).args(["key", "show"]));
    assert_eq!(shown.exit, 0, "{}", shown.stderr);
    assert!(folder.join("key").exists());
}

#[test]
fn a_model_is_measured_on_data() {
    let home = home();
    model(&home.path().join("model"), 256);
    let records = [
        r#"{"prompt": "one and one is ", "completion": "two"}"#,
        r#"{"prompt": "two and two is ", "completion": "four"}"#,
    ];
    fs::write(home.path().join("held.jsonl"), records.join("\n")).unwrap();
    let said = ask(home.path(), &["eval", "./model", "--data", "held.jsonl", "--json"]);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    let found: Value = serde_json::from_str(said.stdout.trim()).unwrap();
    assert_eq!(
        (found["records"].as_u64(), found["tokens"].as_u64(), found["answers"].as_u64()),
        (Some(2), Some(7), Some(2))
    );
    // Weights of a seed know nothing: of 256 bytes each is about as likely.
    assert!((found["loss"].as_f64().unwrap() - 256f64.ln()).abs() < 1.0, "{found}");
    let said = ask(home.path(), &["eval", "./model", "--data", "missing.jsonl", "--json"]);
    assert_eq!(refusal(&said), (7, "SK413".into()));
}

#[test]
fn a_model_is_checked_against_what_its_library_gave() {
    let home = home();
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline/tests/families");
    let (folder, reference) = (families.join("qwen2"), families.join("qwen2/reference.json"));
    let [folder, reference] = [folder, reference].map(|path| path.display().to_string());
    let said = ask(home.path(), &["model", "check", &folder, "--reference", &reference, "--stages", "2", "--json"]);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    let found: Value = serde_json::from_str(said.stdout.trim()).unwrap();
    assert!(found["logits_max_abs"].as_f64().unwrap() < 1e-4 && found["greedy_equal"] == true, "{found}");
    // The numbers of another model.
    let other = families.join("llama3/reference.json").display().to_string();
    let said = ask(home.path(), &["model", "check", &folder, "--reference", &other, "--json"]);
    assert_eq!(refusal(&said), (9, "SK414".into()));
    let said = ask(home.path(), &["model", "show", &folder, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(said.stdout.trim()).unwrap()["family"], "qwen2");
}

#[test]
fn an_adapter_becomes_part_of_its_model_and_not_of_another() {
    let home = home();
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline/tests/families");
    let at = |name: &str| families.join(name).display().to_string();
    let said = ask(home.path(), &["model", "merge", &at("llama3"), &at("lora"), "--out", "merged"]);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    assert!(home.path().join("merged/model.safetensors").exists());
    let said = ask(home.path(), &["model", "merge", &at("llama3"), &at("lora"), "--out", "merged", "--json"]);
    assert_eq!(refusal(&said), (2, "SK314".into()));
    let said = ask(home.path(), &["model", "merge", &at("qwen3"), &at("lora"), "--out", "other", "--json"]);
    assert_eq!(refusal(&said), (7, "SK403".into()));
}

#[test]
fn a_model_goes_into_one_file_and_says_the_same_from_it() {
    let home = home();
    model(&home.path().join("model"), 256);
    let converted = ask(home.path(), &["model", "convert", "./model", "--out", "m.gguf", "--type", "f32", "--json"]);
    assert_eq!(converted.exit, 0, "{}", converted.stderr);
    assert_eq!(json(&converted)["bytes"], fs::metadata(home.path().join("m.gguf")).unwrap().len());
    let prompt =
        |model: &str| ask(home.path(), &["generate", model, "The fox", "--max-tokens", "20", "--seed", "7"]).stdout;
    assert_eq!(prompt("m.gguf"), prompt("./model"));
    let shown = json(&ask(home.path(), &["model", "show", "m.gguf", "--json"]));
    assert_eq!((&shown["family"], &shown["config"]["vocab"]), (&"llama".into(), &256.into()));
    fs::write(home.path().join("held.jsonl"), "{\"text\":\"the fox and the stone\"}\n").unwrap();
    let loss =
        |model: &str| json(&ask(home.path(), &["eval", model, "--data", "held.jsonl", "--json"]))["loss"].clone();
    assert_eq!(loss("m.gguf"), loss("./model"));
    // Back, and not over what is there.
    let back = ask(home.path(), &["model", "convert", "m.gguf", "--out", "back"]);
    assert_eq!((back.exit, back.stdout.as_str()), (0, "back\n"), "{}", back.stderr);
    let weights = |folder: &str| fs::read(home.path().join(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("back"), weights("model"));
    let again = ask(home.path(), &["model", "convert", "./model", "--out", "m.gguf", "--json"]);
    assert_eq!(refusal(&again), (2, "SK314".into()));
    let smaller = ask(home.path(), &["model", "convert", "./model", "--out", "m.gguf", "--type", "q8_0", "--force"]);
    assert_eq!(smaller.exit, 0, "{}", smaller.stderr);
    assert!(prompt("m.gguf").starts_with("The fox"));
    fs::write(home.path().join("m.gguf"), b"GGUF\x03").unwrap();
    assert_eq!(refusal(&ask(home.path(), &["generate", "m.gguf", "Once", "--json"])), (7, "SK403".into()));
}

#[test]
fn models_of_the_hub_are_listed_and_removed_and_a_hub_that_is_not_there_is_told() {
    let home = home();
    let away = |args: &[&str]| {
        let said = said(skein(home.path()).env("HF_ENDPOINT", "http://127.0.0.1:9").args(args));
        refusal(&said)
    };
    assert_eq!(away(&["model", "pull", "hf:tiny/model", "--json"]), (5, "SK417".into()));
    assert_eq!(away(&["generate", "hf:tiny/model", "Once", "--json"]), (5, "SK417".into()));
    assert_eq!(away(&["model", "pull", "../model", "--json"]).0, 2);
    assert_eq!(away(&["model", "rm", "hf:tiny/model", "--json"]), (2, "SK421".into()));
    let here = home.path().join("models/tiny--model@main");
    fs::create_dir_all(here.parent().unwrap()).unwrap();
    model(&here, 256);
    let note = r#"{"id":"tiny/model","revision":"main","commit":"c0ffee","endpoint":"https://hub","began":"2026-01-02T03:04:05Z","bytes":1,"complete":true}"#;
    fs::write(here.join("skein-source.json"), note).unwrap();
    let listed = ask(home.path(), &["model", "list"]).stdout;
    assert!(listed.contains("hf:tiny/model") && listed.contains("llama") && listed.contains("2026-01-02"), "{listed}");
    // One that is here needs no Hub.
    assert_eq!(ask(home.path(), &["generate", "hf:tiny/model", "Once", "--max-tokens", "2"]).exit, 0);
    assert_eq!(away(&["model", "rm", "hf:tiny/model", "--json"]).0, 2, "nobody can be asked");
    assert!(here.exists());
    assert_eq!(ask(home.path(), &["model", "rm", "hf:tiny/model", "--yes"]).exit, 0);
    assert!(!here.exists() && json(&ask(home.path(), &["model", "list", "--json"])).to_string().contains("[]"));
}
