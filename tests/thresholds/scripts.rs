//! Depths, lengths and counts in scripts of other trainers: up to the limit, and one step beyond.

use std::path::PathBuf;

use vtrain::migrate::{Migrated, Source, finetrainers, musubi};

const TRAIN: &str = "python train.py --model_name wan --pretrained_model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data_root d \
                     --video_resolution_buckets 49x480x832";
const WAN: &str = "accelerate launch wan_train_network.py --task t2v-1.3B --network_dim 8 --max_train_steps 10 --output_dir out \
                   --dataset_config";

fn source(name: &str, text: String) -> Source {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Source {
        text,
        name: name.into(),
        folder: Some(root.join("tests/fixtures/migrate/musubi")),
        from: root.clone(),
        to: root,
        variables: Vec::new(),
    }
}

/// A shell script that trains after these lines, with these words.
fn shell(before: &str, words: &str) -> Result<Migrated, Vec<String>> {
    finetrainers::migrate(&source("train.sh", format!("{before}\n{TRAIN} {words}\n")))
}

/// A Windows script that trains after these lines.
fn windows(name: &str, before: &str) -> Result<Migrated, Vec<String>> {
    musubi::migrate(&source(name, format!("{before}\n{WAN} dataset.toml\n")), None)
}

/// So many are read, and one more is refused for this reason.
fn edge(most: usize, reason: &str, migrated: impl Fn(usize) -> Result<Migrated, Vec<String>>) {
    let within = migrated(most);
    assert!(within.is_ok(), "{reason}: {:?}", within.err());
    let beyond = migrated(most + 1).expect_err(reason);
    assert!(
        beyond.iter().any(|problem| problem.contains(reason)),
        "{reason}: {beyond:?}"
    );
}

/// Functions that call the next one: f1 calls f2, and so on.
fn calls(depth: usize) -> String {
    let bodies = (1..=depth).map(|n| match n == depth {
        true => format!("f{n}() {{ true; }}\n"),
        false => format!("f{n}() {{ f{}; }}\n", n + 1),
    });
    bodies.collect::<String>() + "f1"
}

fn nested(open: &str, middle: &str, close: &str, depth: usize) -> String {
    open.repeat(depth) + middle + &close.repeat(depth)
}

#[test]
fn scripts_within_scripts_are_followed_so_deep() {
    edge(8, "more than 8 deep", |n| shell(&calls(n), ""));
    edge(64, "more than 64 deep", |n| {
        shell(&nested("if true; then\n", "true\n", "fi\n", n), "")
    });
    edge(100_000, "more than 100000 commands", |n| {
        shell(&"R=4\n".repeat(n - 1), "")
    });
    edge(32, "more than 32 deep", |n| {
        windows("x.bat", &nested("if 1==1 (\r\n", "set R=4\r\n", ")\r\n", n))
    });
    edge(32, "brackets within brackets", |n| {
        windows("x.ps1", &format!("$R = {}", nested("(", "4", ")", n)))
    });
}

#[test]
fn values_within_values_are_read_so_deep() {
    edge(16, "more than 16 deep", |n| {
        shell("", &format!("--rank {}", nested("${R:-", "4", "}", n)))
    });
    // The value of a sum that is too deep is not invented.
    let sum = |depth| {
        shell(
            &format!(
                "R={}",
                nested("$((", "4", "))", 1).replace('4', &nested("(", "4", ")", depth))
            ),
            "--rank $R",
        )
    };
    assert!(sum(31).is_ok_and(|read| read.problems.is_empty() && read.yaml.contains("rank: 4")));
    assert!(sum(32).is_err());
}

/// `((...))` as a command is looked for within 1024 signs and 16 brackets; `${R%...}` cuts values of 512 bytes.
#[test]
fn long_sums_and_long_values_are_told_and_not_read() {
    let rank = |before: String, words: &str| shell(&before, words).is_ok_and(|read| read.yaml.contains("rank: 12"));
    let sum = |length: usize| format!("((R = 12{}))", " ".repeat(length - "((R = 12))".len()));
    assert!(rank(sum(1024), "--rank $R") && !rank(sum(1025), "--rank $R"));
    let deep = |depth: usize| format!("((R = {}))", nested("(", "12", ")", depth - 2));
    assert!(rank(deep(16), "--rank $R") && !rank(deep(17), "--rank $R"));
    let value = |length: usize| format!("R=12{}", "x".repeat(length - 2));
    assert!(rank(value(512), "--rank ${R%%x*}") && !rank(value(513), "--rank ${R%%x*}"));
}

/// A MiB of text, and of values that are put in.
#[test]
fn scripts_of_a_mib_are_read() {
    const MIB: usize = 1 << 20;
    edge(MIB, "is longer than 1048576 bytes", |n| {
        let train = format!("\n{TRAIN}\n");
        finetrainers::migrate(&source("train.sh", "#".repeat(n - train.len()) + &train))
    });
    // 16 KiB are put in 64 times; what else is put in is less than as much again.
    let grown = "comes to more than 1048576 bytes";
    let (long, times) = ("x".repeat(1 << 14), 60);
    let lines = |line: &str, times: usize| format!("{line}\n").repeat(times);
    for (name, set, put) in [("x.bat", "set \"R=", "set S=%R%"), ("x.ps1", "$R = \"", "$S = \"$R\"")] {
        let read = |times| windows(name, &format!("{set}{long}\"\n{}", lines(put, times)));
        assert!(read(times / 4).is_ok(), "{name}: {:?}", read(times / 4).err());
        let beyond = read(2 * times).expect_err(name);
        assert!(beyond[0].contains(grown), "{name}: {beyond:?}");
    }
    let read = |times| shell(&format!("R={long}\n{}", lines("S=$R", times)), "");
    assert!(read(times / 4).is_ok());
    assert!(read(2 * times).unwrap_err()[0].contains(grown));
}

#[test]
fn a_data_set_file_of_16_mib_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dataset.toml");
    let text = std::fs::read_to_string(source("", String::new()).folder.unwrap().join("dataset.toml")).unwrap();
    edge(16 << 20, "is longer than 16777216 bytes", |n| {
        std::fs::write(&path, text.clone() + &"\n".repeat(n - text.len())).unwrap();
        musubi::migrate(&source("x.sh", format!("{WAN} {}\n", path.display())), None)
    });
}

#[test]
fn counts_beyond_the_trainers_own_are_refused() {
    let videos = |n| shell("", &format!("--validation_prompts ball --num_validation_videos {n}"));
    assert!(videos(64).unwrap().problems.is_empty());
    assert!(videos(65).map_or_else(|e| e, |read| read.problems)[0].contains("expected 1 to 64"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dataset.toml");
    let frames = |most: usize| {
        let text = format!(
            "[general]\nresolution = [832, 480]\n[[datasets]]\nvideo_directory = \"v\"\nframe_extraction = \"full\"\nmax_frames = {most}\n"
        );
        std::fs::write(&path, text).unwrap();
        musubi::migrate(&source("x.sh", format!("{WAN} {}\n", path.display())), None)
            .map_or_else(|e| e, |read| read.problems)
    };
    assert_eq!(frames(1025), [""; 0]);
    assert!(frames(1026)[0].contains("from 1 to 1025"), "{:?}", frames(1026));
}

#[test]
fn messages_show_60_characters_of_a_statement_and_100_remarks() {
    let statement = |length: usize| format!("function T {{ {} }}", "x".repeat(length - 15));
    let told = |length| windows("x.ps1", &statement(length)).unwrap().yaml;
    assert!(told(60).contains(&format!("`{}`", statement(60))), "{}", told(60));
    assert!(
        told(62).contains(&format!("`{}...`", &statement(62)[..60])),
        "{}",
        told(62)
    );
    let remarks = |count: usize| {
        let lines: String = (0..count).map(|n| format!("read -r V{n}\n")).collect();
        shell(&lines, "").unwrap().yaml.matches("is set by `read`").count()
    };
    assert_eq!([remarks(100), remarks(101)], [100, 100]);
}

#[test]
fn a_command_line_takes_a_script_of_a_mib() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.sh");
    for (bytes, reads) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        std::fs::write(&path, format!("{TRAIN}\n{}", "\n".repeat(bytes - TRAIN.len() - 1))).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vtrain"));
        let output = command
            .args(["migrate", "finetrainers"])
            .arg(&path)
            .current_dir(&folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("is longer than 1048576 bytes"), !reads, "{bytes}: {said}");
    }
}
