//! Forms of Unix shells: read correctly, or reported.

use serde_json::json;

use super::*;

fn migrate(script: &str) -> Result<Migrated, Vec<String>> {
    finetrainers::migrate(&source("train.sh", script.to_string()))
}

const TRAIN: &str = "python train.py --model_name wan --pretrained_model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data_root d \
                     --video_resolution_buckets 49x480x832";

/// Reads a script whose training ends in these words, with this rank.
fn rank(before: &str, words: &str, rank: u64) {
    let script = format!("{before}\n{TRAIN} {words}\n");
    let migrated = migrate(&script).unwrap_or_else(|e| panic!("{script}\n{e:?}"));
    assert_eq!(
        at(&loaded(&migrated), "lora.rank"),
        json!(rank),
        "{script}\n{}",
        migrated.yaml
    );
}

#[test]
fn values_in_braces_are_what_bash_makes_of_them() {
    rank(": \"${R:=16}\"", "--rank $R", 16);
    rank(": ${R=16} ${S:=$R}", "--rank $S", 16);
    rank("R=4; : ${R:=16}", "--rank $R", 4);
    rank("R=; : ${R=16}; : ${R:=8}", "--rank $R", 8);
    rank("", "--rank ${R:-8}", 8);
    rank("", "--rank ${R:-${S:-8}}", 8);
    rank("X=1", "--rank 4 ${X:+--rank 8}", 8);
    rank("", "--rank 4 ${X:+--rank 8}", 4);
    rank("R=12.5", "--rank ${R%.*}", 12);
    rank("R=a/b/12", "--rank ${R##*/}", 12);
    rank("R=x-12-y; R=${R#*-}", "--rank ${R%%-*}", 12);
    rank("R=(4 8 12)", "--rank ${R[2]}", 12);
    rank("R=(4 8); R[1]=12; R[2]=16", "--rank ${R[1]}", 12);
    rank("R=3", "--rank $((R * 4))", 12);
    rank(
        "R=3; ((R += 1)); ((R++)); let R=R+1",
        "--rank $(( (R - 2) * 3 % 100 ))",
        12,
    );
}

#[test]
fn arguments_functions_and_sourced_files_are_followed() {
    rank("set -- --rank 12", "\"$@\"", 12);
    rank("set -- 4 12; shift", "--rank $1", 12);
    rank("set -- 4 12", "--rank ${2} # $#", 12);
    rank("train() {\n  R=$1\n}\ntrain 12", "--rank $R", 12);
    rank("function train { local R=4; S=$2; }; train 1 12", "--rank $S", 12);
    rank(
        "usage() { echo usage; exit 1; }\n[ $# -lt 1 ] && usage\nR=12",
        "--rank $R",
        12,
    );
    rank("f() { R=12; return; R=4; }\nf", "--rank $R", 12);
    rank("bash -c 'true'\nR=12", "--rank $R; exit 0\nR=4", 12);
    rank("exec 2>log.txt", "--rank 12", 12);
    rank("cat > x.toml <<END\n--rank 4\n$X\nEND", "--rank 12", 12);
    let script = format!("run() {{\n  exec {TRAIN} \"$@\"\n}}\nrun --rank 12\n");
    assert_eq!(at(&loaded(&migrate(&script).unwrap()), "lora.rank"), json!(12));

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("settings.sh"), "R=12\nexport S=$R\n").unwrap();
    let mut source = source(
        "train.sh",
        format!("source ./settings.sh\n. venv/bin/activate\n{TRAIN} --rank $S\n"),
    );
    source.folder = Some(folder.path().to_path_buf());
    let migrated = finetrainers::migrate(&source).unwrap();
    assert_eq!(at(&loaded(&migrated), "lora.rank"), json!(12));
    assert!(migrated.yaml.contains("venv/bin/activate"), "{}", migrated.yaml);
}

#[test]
fn tests_decide_where_the_script_itself_answers_them() {
    rank("R=4; [ -z \"$R\" ] && R=12", "--rank $R", 4);
    rank("R=; [ -z \"$R\" ] && R=12", "--rank $R", 12);
    rank("R=4; [ \"$R\" = 4 ] || R=12", "--rank $R", 4);
    rank("R=4; if ! [ \"$R\" = 4 ]; then R=12; fi", "--rank $R", 4);
    rank(
        "R=4; if [ $R -gt 3 ] && [ $R -le 4 ]; then R=12; else R=8; fi",
        "--rank $R",
        12,
    );
    rank(
        "R=4; if [[ $R == 4 && -n $R ]]; then R=12; else R=8; fi",
        "--rank $R",
        12,
    );
    rank(
        "M=wan-14B; if [[ $M == wan-* ]]; then R=12; else R=8; fi",
        "--rank $R",
        12,
    );
    rank(
        "M=wan-14B; case $M in ltx*|cog*) R=4;; wan-*) R=12;; *) R=8;; esac",
        "--rank $R",
        12,
    );
    rank("R=12; [ 1 = 2 ] && { R=4; R=5; }", "--rank $R", 12);
    rank("R=12; [ 1 = 2 ] && (R=4)", "--rank $R", 12);
    rank("R=12; if ((R > 20)); then R=4; fi", "--rank $R", 12);
}

#[test]
fn what_the_script_does_not_answer_is_told() {
    for (before, told) in [
        ("[ -d out ] && R=4", "[ -d out ]"),
        ("if [ -f seeds ]; then R=4; else R=8; fi", "each branch is read"),
        ("case $1 in a) R=4;; *) R=8;; esac", "each clause is read"),
        ("read -r R", "is set by `read`"),
        ("declare -A R=([a]=4)", "named items"),
        ("source gone.sh", "gone.sh"),
        ("source /etc/profile", "is not the script's own"),
        ("((R = X / 0))", "is not computed"),
        ("set -- $(seq 4)", "is not run"),
    ] {
        let migrated = migrate(&format!("{before}\n{TRAIN} --rank 4\n")).unwrap();
        loaded(&migrated);
        assert!(migrated.yaml.contains(told), "{before}: {told}\n{}", migrated.yaml);
    }
}

#[test]
fn a_value_that_only_running_would_tell_is_no_value_of_the_run_file() {
    for word in [
        "out/$(date +%F)",
        "out/`date`",
        "${X/a/b}",
        "$HERE/out",
        "out-$1",
        "out-$((1 / 0))",
        "${1:?}",
    ] {
        let migrated = migrate(&format!("{TRAIN} --output_dir {word}\n")).unwrap();
        assert!(
            migrated.problems.iter().any(|p| p.starts_with("output_dir: ")),
            "{word}: {:?}",
            migrated.problems
        );
        assert!(
            migrated.yaml.contains("To be fixed: output_dir: "),
            "{word}\n{}",
            migrated.yaml
        );
    }
    // Where it is not a value, nothing is to be fixed.
    loaded(&migrate(&format!("{TRAIN} --tracker_name $(date)\n")).unwrap());
}

#[test]
fn a_line_that_nothing_joins_to_the_one_above_is_refused() {
    for joiner in ["\\ ", ""] {
        let Err(problems) = migrate(&format!("{TRAIN} {joiner}\n  --rank 4\n")) else {
            panic!("{joiner:?}");
        };
        assert!(problems[0].contains("starts with --rank"), "{problems:?}");
    }
}

#[test]
fn scripts_that_would_never_end_are_refused() {
    for (script, reason) in [
        ("f() { f; f; }\nf\n", "deep"),
        ("X='eval \"$X\"'\neval \"$X\"\n", "deep"),
        (
            "f() { g; g; g; g; g; g; g; g; g; g; }\ng() { h; h; h; h; h; h; h; h; h; h; }\nh() { i; i; i; i; i; i; i; i; i; i; }\n\
          i() { j; j; j; j; j; j; j; j; j; j; }\nj() { k; k; k; k; k; k; k; k; k; k; }\nk() { :; :; :; :; :; :; :; :; :; :; }\nf\n",
            "commands",
        ),
        (&"(".repeat(1 << 19), "deep"),
        ("f() {\necho\n", "never closed"),
    ] {
        let problems = migrate(script).unwrap_err();
        assert!(problems[0].contains(reason), "{reason}: {problems:?}");
    }
}
