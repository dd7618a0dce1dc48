//! The Hub's variables of the environment.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use vtrain::hub::environment::Environment;

type Variables<'a> = BTreeMap<&'a str, String>;

fn read(variables: &Variables) -> Environment {
    Environment::read(|name| variables.get(name).cloned())
}

/// A home whose places for tokens hold `home`, `cache` and `own`.
fn home(at: &Path) {
    for (folder, token) in [
        ("hf", "home"),
        (".cache/huggingface", "cache"),
        ("xdg/huggingface", "xdg"),
    ] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
        std::fs::write(at.join(folder).join("token"), format!("{token}\n")).unwrap();
    }
    std::fs::write(at.join("own"), " own\r\n").unwrap();
}

/// Environments, with what they say: the cache, the token, the endpoint, whether the Hub is not to be asked.
fn cases(home: &Path) -> Vec<(Variables<'static>, [String; 4])> {
    let at = |path: &str| home.join(path).to_string_lossy().into_owned();
    let hub = "https://huggingface.co";
    let cache = at(".cache/huggingface/hub");
    let case = |set: &[(&'static str, &str)], cache: &str, token: &str, endpoint: &str, offline: bool| {
        let mut variables: Variables = set.iter().map(|(name, value)| (*name, (*value).to_string())).collect();
        variables.insert("HOME", home.to_string_lossy().into_owned());
        let offline = if offline { "True" } else { "False" };
        (variables, [cache, token, endpoint, offline].map(String::from))
    };
    let hf = at("hf/hub");
    let fast = at("fast");
    vec![
        case(&[], &cache, "cache", hub, false),
        case(
            &[("XDG_CACHE_HOME", &at("xdg"))],
            &at("xdg/huggingface/hub"),
            "xdg",
            hub,
            false,
        ),
        case(
            &[("HF_HOME", &at("hf")), ("XDG_CACHE_HOME", &at("xdg"))],
            &hf,
            "home",
            hub,
            false,
        ),
        case(&[("HF_HOME", "~/hf")], &hf, "home", hub, false),
        // Another's home, of whom nothing is known.
        case(
            &[("HF_HUB_CACHE", "~no-such-user/hf")],
            "~no-such-user/hf",
            "cache",
            hub,
            false,
        ),
        case(&[("HF_HOME", "$HOME/hf")], &hf, "home", hub, false),
        case(&[("HF_HOME", "${HOME}/hf")], &hf, "home", hub, false),
        case(
            &[("HF_HUB_CACHE", &fast), ("HUGGINGFACE_HUB_CACHE", "/slow")],
            &fast,
            "cache",
            hub,
            false,
        ),
        case(
            &[("HUGGINGFACE_HUB_CACHE", &fast), ("HF_HOME", &at("hf"))],
            &fast,
            "home",
            hub,
            false,
        ),
        case(
            &[("HF_HUB_CACHE", "~/$NOT_SET/x")],
            &at("$NOT_SET/x"),
            "cache",
            hub,
            false,
        ),
        case(&[("HF_TOKEN_PATH", &at("own"))], &cache, "own", hub, false),
        case(
            &[("HF_TOKEN_PATH", "~/own"), ("HF_TOKEN", " said\n")],
            &cache,
            "said",
            hub,
            false,
        ),
        case(&[("HUGGING_FACE_HUB_TOKEN", "old")], &cache, "old", hub, false),
        case(
            &[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", "new")],
            &cache,
            "new",
            hub,
            false,
        ),
        case(
            &[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "old")],
            &cache,
            "old",
            hub,
            false,
        ),
        case(&[("HF_TOKEN_PATH", &at("nothing"))], &cache, "None", hub, false),
        case(
            &[("HF_ENDPOINT", "https://hub.example.com/")],
            &cache,
            "cache",
            "https://hub.example.com",
            false,
        ),
        case(&[("HF_HUB_OFFLINE", "1")], &cache, "cache", hub, true),
        case(&[("HF_HUB_OFFLINE", "yes")], &cache, "cache", hub, true),
        case(&[("HF_HUB_OFFLINE", "True")], &cache, "cache", hub, true),
        case(&[("HF_HUB_OFFLINE", "2")], &cache, "cache", hub, false),
        case(&[("TRANSFORMERS_OFFLINE", "ON")], &cache, "cache", hub, true),
        case(
            &[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")],
            &cache,
            "cache",
            hub,
            false,
        ),
        case(
            &[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")],
            &cache,
            "cache",
            hub,
            true,
        ),
    ]
}

#[test]
fn variables_mean_what_huggingface_hub_takes_them_for() {
    let folder = tempfile::tempdir().unwrap();
    home(folder.path());
    for (variables, expected) in cases(folder.path()) {
        let ours = read(&variables);
        let found = [
            ours.cache.to_string_lossy().into_owned(),
            ours.token_to_read().unwrap_or("None".into()),
            ours.endpoint.clone(),
            if ours.offline.is_some() { "True" } else { "False" }.to_string(),
        ];
        assert_eq!(found, expected, "{variables:?}");
    }
}

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn huggingface_hub_itself_takes_the_variables_for_that() {
    let folder = tempfile::tempdir().unwrap();
    home(folder.path());
    for (variables, expected) in cases(folder.path()) {
        let script = "from huggingface_hub import constants as c, get_token\n\
            print(c.HF_HUB_CACHE, get_token(), c.ENDPOINT, c.HF_HUB_OFFLINE, sep='\\n')";
        let output = Command::new(crate::needs::python())
            .args(["-c", script])
            .env_clear()
            .envs(&variables)
            .output()
            .unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(told.lines().collect::<Vec<_>>(), expected, "{variables:?}");
    }
}

#[test]
fn a_token_that_is_not_to_be_sent_unasked_is_sent_only_to_write() {
    let variables = |value: &str| {
        Variables::from([
            ("HF_TOKEN", "secret".to_string()),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", value.to_string()),
        ])
    };
    let asked = read(&variables("1"));
    assert_eq!(
        (asked.token_to_read(), asked.token_to_write().as_deref()),
        (None, Some("secret"))
    );
    assert_eq!(read(&variables("0")).token_to_read().as_deref(), Some("secret"));
}

#[test]
fn what_is_set_without_effect_is_told() {
    let unheeded = |name: &'static str, value: &str| {
        let told = read(&Variables::from([(name, value.to_string())])).unheeded;
        told.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    for name in [
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_DISABLE_SYMLINKS",
        "HF_HUB_ENABLE_HF_TRANSFER",
    ] {
        assert_eq!(unheeded(name, "30"), [name]);
        assert!(unheeded(name, "").is_empty());
    }
    assert!(unheeded("HF_HUB_DISABLE_SYMLINKS", "0").is_empty());
    assert!(unheeded("HF_HUB_DISABLE_TELEMETRY", "1").is_empty()); // nothing is told to anybody
    assert!(unheeded("HTTPS_PROXY", "http://proxy:3128").is_empty());
    assert_eq!(unheeded("HTTPS_PROXY", "http//proxy 3128"), ["HTTPS_PROXY"]);
    assert!(!read(&Variables::from([("HF_HUB_DISABLE_PROGRESS_BARS", "1".to_string())])).progress);
    assert!(read(&Variables::new()).progress);
}

/// Behaviour of the program: the cache's path, requests, messages.
#[test]
fn a_download_goes_by_the_environment() {
    let (endpoint, asked) = super::serve();
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let run = |name: &str, set: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command
            .args(["lora", "merge", "--lora", "someone/style", "--model"])
            .arg(super::checkpoint());
        command.arg(folder.path().join(name));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HF_") || name.contains("OFFLINE")) {
            command.env_remove(name);
        }
        command
            .env("HOME", folder.path())
            .env("HF_HUB_CACHE", &cache)
            .env("HF_TOKEN", "secret-token");
        command
            .env("HF_ENDPOINT", format!("{endpoint}/"))
            .envs(set.iter().copied());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said, std::mem::take(&mut *asked.lock().unwrap()))
    };
    let (code, said, asked) = run("offline", &[("TRANSFORMERS_OFFLINE", "1")]);
    assert_eq!(code, Some(4), "{said}");
    assert!(
        said.contains("TRANSFORMERS_OFFLINE is set") && asked.is_empty(),
        "{said}"
    );
    let set = [
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
    ];
    let (code, said, asked) = run("unasked", &set);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        !asked.is_empty() && asked.iter().all(|request| !request.contains("with token")),
        "{asked:?}"
    );
    assert!(
        said.contains("HF_HUB_DOWNLOAD_TIMEOUT is set, but has no effect"),
        "{said}"
    );
    assert!(cache.join("models--someone--style/snapshots").is_dir());
    assert!(!folder.path().join(".cache").exists());
    let (code, said, asked) = run("again", &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!((code, asked.len()), (Some(0), 0), "{said}");
}
