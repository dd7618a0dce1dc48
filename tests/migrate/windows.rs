//! Batch files and PowerShell: read right, or refused by name with the line; never by half.

use serde_json::json;

use super::*;

const BATCH: &str = "accelerate launch wan_train_network.py --task t2v-1.3B --network_dim 8 --max_train_steps 10 \
                     --dataset_config tests\\fixtures\\migrate\\musubi\\dataset.toml --output_dir out";

fn migrate(name: &str, text: &str) -> Result<Migrated, Vec<String>> {
    let mut source = source("musubi/x", text.to_string());
    source.name = name.into();
    musubi::migrate(&source, None)
}

/// The run file of a script, with this at one of its keys.
fn reads(name: &str, script: &str, path: &str, value: Value) {
    let migrated = migrate(name, script).unwrap_or_else(|e| panic!("{script}\n{e:?}"));
    let config = loaded(&migrated);
    assert_eq!(at(&config, path), value, "{script}\n{}", migrated.yaml);
}

/// Is refused, for this reason.
fn refuses(name: &str, script: &str, reasons: &[&str]) {
    let problems = migrate(name, script).expect_err(script).join("\n");
    for reason in reasons {
        assert!(problems.contains(reason), "{script}\n{problems}\nnot: {reason}");
    }
}

#[test]
fn a_batch_file_and_a_powershell_script_mean_what_their_shell_script_means() {
    for name in ["musubi/train.bat", "musubi/train.ps1"] {
        let migrated = musubi::migrate(&source(name, text(name)), None).unwrap();
        let config = loaded(&migrated);
        expect(
            &config,
            &[
                ("model.path", json!("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")),
                ("lora.rank", json!(32)),
                ("lora.alpha", json!(16)),
                ("optimizer.lr", json!(2e-4)),
                ("optimizer.weight_decay", json!(0.1)),
                ("optimizer.beta2", json!(0.99)),
                ("train.epochs", json!(16)),
                ("seed", json!(42)),
                ("datasets.0.path", json!(root().join("data/melting"))),
                ("output_dir", json!(root().join("out/batch/melting things"))),
            ],
        );
        nothing_is_dropped(name, &migrated);
    }
}

#[test]
fn variables_of_batch_files_are_put_in_as_cmd_puts_them_in() {
    let line = |more: &str| format!("{BATCH} {more}\r\n");
    let rank = |script: &str, rank: u64| reads("x.bat", script, "lora.rank", json!(rank));
    rank(&line("--network_dim 9"), 9);
    rank(&format!("SET rank=12\r\n{}", line("--network_dim %RANK%")), 12);
    rank(
        &format!("set \"R=12\" & rem twelve\r\n{}", line("--network_dim %R%")),
        12,
    );
    rank(
        &format!("set /a R=(1+2)*4, S=R%%%%5\r\n{}", line("--network_dim %S%")),
        2,
    );
    rank(&format!("if not defined R set R=5\r\n{}", line("--network_dim %R%")), 5);
    rank(
        &format!(
            "set R=5\r\nif \"%R%\"==\"5\" (set R=6) else (set R=7)\r\n{}",
            line("--network_dim %R%")
        ),
        6,
    );
    rank(
        &format!(
            "set R=5\r\nif /i %R% gtr 40 (\r\n  set R=6\r\n) else (\r\n  set R=7\r\n)\r\n{}",
            line("--network_dim %R%")
        ),
        7,
    );
    // Within a block, %R% is what it was before the block, !R! is what it is.
    let block = |sign: char| {
        format!(
            "setlocal EnableDelayedExpansion\r\nset R=5\r\nif 1==1 (\r\nset R=6\r\nset S={sign}R{sign}\r\n)\r\n{}",
            line("--network_dim %S%")
        )
    };
    rank(&block('%'), 5);
    rank(&block('!'), 6);
    rank(
        &format!(
            "set R=5\r\nsetlocal\r\nset R=6\r\nendlocal\r\n{}",
            line("--network_dim %R%")
        ),
        5,
    );
    rank(&format!("call {}", line("--network_dim 7")), 7);
    rank(&format!("start /wait \"title\" {}", line("--network_dim 7")), 7);
    rank(
        &format!("set CMD=--network_dim\r\n{}", line("%CMD%^\r\n  7 > log.txt 2>&1")),
        7,
    );
    // A single % is dropped, %% is one.
    reads(
        "x.bat",
        &line("--lr_scheduler cosine --lr_warmup_steps 50%%"),
        "lr_scheduler.warmup_steps",
        json!(5),
    );
    reads(
        "x.bat",
        &line("--lr_scheduler cosine --lr_warmup_steps 5%"),
        "lr_scheduler.warmup_steps",
        json!(5),
    );
    reads(
        "x.bat",
        &line("--output_name \"a ^& b\""),
        "output_dir",
        json!(root().join("out/a ^& b")),
    );
    reads(
        "x.bat",
        &line("--output_name a^&b & pause"),
        "output_dir",
        json!(root().join("out/a&b")),
    );
    // Commands after an end do not run.
    let ended = format!("exit /b 0\r\n{}", line(""));
    refuses("x.bat", &ended, &["no command in it starts a training"]);
    rank(
        &format!("goto :eof & rem\r\n{}", line("")).replace("goto :eof & rem", "if 1==2 goto :eof"),
        8,
    );
}

#[test]
fn what_of_a_batch_file_is_not_followed_is_refused_with_its_line() {
    let refused = |before: &str, reasons: &[&str]| {
        refuses(
            "x.bat",
            &format!("@echo off\r\n{before}\r\n{BATCH} --seed %S%\r\n"),
            reasons,
        );
    };
    refused("for %%s in (1 2) do set S=%%s", &["line 2", "for", "batch"]);
    refused("goto train\r\n:train", &["line 2", "goto"]);
    refused("call :seed\r\n", &["line 2", "call :seed"]);
    refused("if exist seeds.txt set S=5", &["line 2", "exist"]);
    refused("if \"%1\"==\"\" (\r\n  set S=5\r\n)", &["line 2", "if"]);
    refused("if \"%1\"==\"i2v\" goto i2v", &["line 2", "goto"]);
    refused(
        "set S=1\r\nif %S%==1 (\r\n  echo one\r\n  for %%s in (1) do set S=%%s\r\n)",
        &["line 5", "for"],
    );
    refused("set /a S=1/0", &["line 2", "set /a"]);
    refused("set S=1 || set S=2", &["line 2", "set S=2"]);
    refused("(echo open", &["line 2", "never closed"]);

    refuses(
        "x.bat",
        "accelerate launch wan_train_network.py ^ \r\n  --task t2v-1.3B\r\n",
        &["line 1", "^", "space"],
    );
    refuses(
        "x.bat",
        "accelerate launch wan_train_network.py \\\r\n  --task t2v-1.3B\r\n",
        &["--task", "^"],
    );
    refuses(
        "x.bat",
        ":: a comment ^\r\naccelerate launch wan_train_network.py\r\n",
        &["line 1", "comment"],
    );
    refuses(
        "x.bat",
        &format!("{BATCH} --output_name \"x ^\r\n y\"\r\n"),
        &["line 1", "quotes"],
    );
    refuses(
        "x.bat",
        &format!("{BATCH} --dit \"D:\\models\\\" --seed 4\r\n"),
        &["line 1", "\\"],
    );
    refuses(
        "x.bat",
        &format!("powershell -Command \"{BATCH}\"\r\n"),
        &["line 1", "powershell"],
    );
}

#[test]
fn what_a_batch_file_leaves_open_is_told_at_its_key() {
    for (value, told) in [
        ("%WHERE%", "--var WHERE=VALUE"),
        ("%1", "called with"),
        ("%USERPROFILE:C=D%", "cuts or replaces"),
        ("D:\\out\\here", "path of Windows"),
    ] {
        let migrated = migrate(
            "x.bat",
            &format!("{BATCH} --output_dir {value} --network_weights w.safetensors\r\n"),
        )
        .unwrap();
        let problems = migrated.problems.join("\n");
        assert!(problems.contains("output_dir: "), "{value}: {problems}");
        assert!(migrated.yaml.contains(told), "{value}: {told}\n{}", migrated.yaml);
        assert!(!problems.contains("lora.init"), "{problems}");
    }
}

const POWERSHELL: &str = "accelerate launch wan_train_network.py --task t2v-1.3B --network_dim 8 --max_train_steps 10 \
                          --dataset_config tests\\fixtures\\migrate\\musubi\\dataset.toml --output_dir out";

#[test]
fn variables_of_powershell_are_put_in_as_it_puts_them_in() {
    let rank = |before: &str, word: &str, rank: u64| {
        let script = format!("{before}\n{POWERSHELL} --network_dim {word}\n");
        reads("x.ps1", &script, "lora.rank", json!(rank));
    };
    rank("$Rank = 12", "$rank", 12);
    rank("$env:RANK = '12'", "$Env:RANK", 12);
    rank("$script:r = \"1\"; $r += '2'", "${R}", 12);
    rank("$words = @('12')", "@words", 12);
    rank(
        "$words = [System.Collections.ArrayList]::new()\n[void]$words.Add(\"--seed=4\")\n$words.Add('--network_dim')\n$words.Add(12)",
        "1 @words",
        12,
    );
    rank("# $r = 1\n$r = 12 # twelve\n<# $r = 2 #>", "$r", 12);
    rank("$r = \"a`\"12\"", "12", 12);
    rank(
        "if (Test-Path x) { Write-Host 'there' } else { exit }\n$r = 12",
        "$r; exit\n$r = 4",
        12,
    );
    rank("$a = @\"\n--seed\n\"@", "12 $a 4", 12);
    rank("$big = $False\n$r = 12\nif ($big) {\n  $r = 4\n}", "$r", 12);
    rank("$big = 1\nif (!$big) { $r = 4 }\nelse {\n  $r = 12\n}", "$r", 12);
    rank(
        "$m = 'WAN'\nif ($m -eq 'ltx') { $r = 4 } elseif ($m -eq 'wan') { $r = 12 } else { $r = 8 }",
        "$r",
        12,
    );
    rank("$big = $True; if ($big) { if ($big -ne $False) { $r = 12 } }", "$r", 12);
    let name = |word: &str, name: &str| {
        let script = format!("$x = \"a b\"\n{POWERSHELL} --output_name {word}\n");
        reads("x.ps1", &script, "output_dir", json!(root().join("out").join(name)));
    };
    // A variable is one word, whatever it holds.
    name("$x", "a b");
    name("\"$x`tc\"", "a b\tc");
    name("'$x'", "$x");
    name("\"it's $($x)\".txt".replace("$($x)", "$x").as_str(), "it's a b.txt");
    name("a` b", "a b");
    name("@'\nquote \" and $x\n'@", "quote \" and $x");
}

#[test]
fn what_of_powershell_is_not_followed_is_refused_with_its_line() {
    let refused = |before: &str, more: &str, reasons: &[&str]| {
        refuses("x.ps1", &format!("$x = 1\n{before}\n{POWERSHELL} {more}\n"), reasons);
    };
    refused("if ($y -eq 1) {\n  $s = 4\n}", "--seed $s", &["line 2", "PowerShell"]);
    refused("if ($x -eq 1 -and $x) {\n  $s = 4\n}", "--seed $s", &["line 2", "if"]);
    refused(
        "if ($x -eq 1) {\n  foreach ($s in 1) { $r = 4 }\n}",
        "",
        &["line 3", "foreach"],
    );
    refused(
        "foreach ($s in 1, 2) { python wan_train_network.py }",
        "",
        &["line 2", "foreach"],
    );
    refused("param([int]$Seed = 4)", "--seed $Seed", &["line 2", "param"]);
    refused(
        "function Train { python wan_train_network.py }",
        "",
        &["line 2", "function"],
    );
    refused("$words = @{ seed = 4 }", "@words", &["line 3", "@words"]);
    refused("$x += 1", "", &["line 2", "+="]);
    refused("Set-Variable s 4", "--seed $s", &["line 2", "Set-Variable"]);
    refused("", "--optimizer_args betas=0.9,0.99", &["line 3", "comma"]);
    refused("", "--% --seed 4", &["line 3", "--%"]);
    refuses(
        "x.ps1",
        "accelerate launch wan_train_network.py ` \n  --task t2v-1.3B\n",
        &["line 1", "`", "space"],
    );
    refuses(
        "x.ps1",
        "accelerate launch wan_train_network.py \\\n  --task t2v-1.3B\n",
        &["--task", "`"],
    );
    refuses(
        "x.ps1",
        &format!("Start-Process python -ArgumentList \"{POWERSHELL}\"\n"),
        &["line 1", "start-process"],
    );
    refuses("x.ps1", "$x = \"never", &["line 1", "never closed"]);
}

#[test]
fn what_powershell_leaves_open_is_told_at_its_key() {
    for (word, told) in [
        ("$where", "--var where=VALUE"),
        ("\"$env:USERPROFILE\\out\"", "--var userprofile=VALUE"),
        ("(Join-Path a b)", "is not run"),
        ("\"$(Get-Date)\"", "is not run"),
        ("'D:\\out'", "path of Windows"),
    ] {
        let migrated = migrate("x.ps1", &format!("{POWERSHELL} --output_dir {word}\n")).unwrap();
        let problems = migrated.problems.join("\n");
        assert!(problems.contains("output_dir: "), "{word}: {problems}");
        assert!(migrated.yaml.contains(told), "{word}: {told}\n{}", migrated.yaml);
    }
}

#[test]
fn a_script_is_known_by_its_lines_where_its_name_does_not_tell() {
    let joined = |joiner: char| {
        BATCH
            .replace(" --task", &format!(" {joiner}\n --task"))
            .replace(" --output_dir", &format!(" {joiner}\n --output_dir"))
    };
    for joiner in ['^', '`'] {
        reads("the command", &joined(joiner), "lora.rank", json!(8));
    }
    let shell = joined('\\').replace("tests\\fixtures\\migrate\\musubi\\", "tests/fixtures/migrate/musubi/");
    reads("the command", &shell, "lora.rank", json!(8));
}

#[test]
fn scripts_and_data_sets_are_read_in_every_encoding_that_windows_saves() {
    let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> { text.encode_utf16().flat_map(bytes).collect() };
    let data = "[[datasets]]\r\nresolution = [96, 64]\r\nvideo_directory = 'clips'\r\n";
    let script = "accelerate launch wan_train_network.py --task t2v-1.3B ^\r\n  --dataset_config d.toml ^\r\n  --network_dim 8 --output_dir out\r\n";
    let encoded = |text: &str| -> Vec<Vec<u8>> {
        let marked = format!("\u{feff}{text}");
        vec![
            text.into(),
            marked.clone().into(),
            utf16(&marked, u16::to_le_bytes),
            utf16(&marked, u16::to_be_bytes),
        ]
    };
    for (script, data) in encoded(script).into_iter().zip(encoded(data)) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train.bat"), script).unwrap();
        std::fs::write(folder.path().join("d.toml"), data).unwrap();
        let output = vtrain(&["migrate", "musubi", "train.bat", "-o", "run.yaml"], folder.path());
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let yaml = std::fs::read_to_string(folder.path().join("run.yaml")).unwrap();
        assert!(yaml.contains("rank: 8") && yaml.contains("[1, 64, 96]"), "{yaml}");
    }
    let folder = tempfile::tempdir().unwrap();
    for bytes in [
        utf16(script, u16::to_le_bytes),
        vec![0xff, 0xfe, 0x61],
        vec![b'a', 0xe9, b'b'],
    ] {
        std::fs::write(folder.path().join("train.bat"), bytes).unwrap();
        let output = vtrain(&["migrate", "musubi", "train.bat"], folder.path());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("save it as UTF-8"), "{said}");
    }
}
