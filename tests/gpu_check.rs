//! The check on a machine with a GPU (`scripts/gpu_check.sh`), run on the CPU: packed, carried to an empty folder, and
//! run there as a whole at tiny sizes.

mod row;
mod streamed;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns both output streams.
fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|stream| String::from_utf8_lossy(stream));
    format!("{out}{err}")
}

/// Packs a program, with a compression that takes little time.
fn pack(script: &Path, binary: &Path, to: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command
        .arg(script)
        .arg("--pack")
        .args([binary, to])
        .args(more)
        .env("XZ_OPT", "-0");
    command
}

/// A folder with all programs of the system but these.
fn programs_without(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in ["/usr/bin", "/bin"] {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if !names.iter().any(|left_out| *left_out == name) {
                let _ = symlink(entry.path(), folder.path().join(name)); // a second one of that name is as good
            }
        }
    }
    folder
}

fn make_executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Copies the archive to an empty folder.
fn carry(carried: &Path) -> tempfile::TempDir {
    let empty = tempfile::tempdir().unwrap();
    for name in ["carry.tar.xz", "gpu_check.sh"] {
        fs::copy(carried.join(name), empty.path().join(name)).unwrap();
    }
    empty
}

/// The whole visit, from the archive: without an environment, in a folder that holds nothing else, and without xz.
#[test]
#[ignore = "needs visit: python3, xz and git"]
fn the_whole_visit_runs_on_the_cpu_out_of_an_archive_in_an_empty_folder_with_an_empty_environment() {
    let carried = tempfile::tempdir().unwrap();
    let mut packing = pack(
        &root().join("scripts/gpu_check.sh"),
        Path::new(env!("CARGO_BIN_EXE_vtrain")),
        carried.path(),
        &["--no-peer", "--ffmpeg", "system"],
    );
    // With all of FFmpeg's dependencies it may be too large for the file system; it is packed first.
    let packed = said(&packing.output().unwrap());
    println!("{packed}");
    assert!(packed.contains("beside it: the tree"), "{packed}");

    let empty = carry(carried.path());
    let programs = programs_without(&["xz", "unxz", "xzcat", "nvidia-smi", "compute-sanitizer"]);
    let python = programs.path().join("python-without-packages");
    make_executable(&python, "#!/bin/sh\nexec python3 -S \"$@\"\n");
    let mut visit = Command::new("bash");
    visit
        .args([
            "./gpu_check.sh",
            "--device",
            "cpu",
            "--size",
            "tiny",
            "--budget",
            "3600",
            "--tree",
        ])
        .arg(root())
        .arg("--python")
        .arg(&python)
        .current_dir(empty.path())
        .env_clear()
        .env("PATH", programs.path());
    let visited = visit.output().unwrap();
    let told = said(&visited);
    println!("{told}");
    assert!(visited.status.success());
    assert!(told.contains("nothing: all comparisons hold"));
    assert_eq!(
        told,
        fs::read_to_string(empty.path().join("gpu_check.log")).unwrap(),
        "the log holds all of it"
    );
    expect_rows(&told);
}

/// With an FFmpeg of its own, built from the source of the one that is installed, under the same names.
#[test]
#[ignore = "needs ffmpeg: apt-get has the source of the one that is installed"]
fn an_archive_with_a_small_ffmpeg_takes_45_mib_at_most_and_reads_and_writes_clips() {
    let named = std::env::var_os("VTRAIN_MINIMAL_FFMPEG").map(PathBuf::from);
    let ffmpeg = named.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("minimal-ffmpeg"));
    let carried = tempfile::tempdir().unwrap();
    let mut packing = pack(
        &root().join("scripts/gpu_check.sh"),
        Path::new(env!("CARGO_BIN_EXE_vtrain")),
        carried.path(),
        &["--no-peer", "--ffmpeg", "minimal"],
    );
    let packed = packing.env("VTRAIN_MINIMAL_FFMPEG", &ffmpeg).output().unwrap();
    println!("{}", said(&packed));
    assert!(packed.status.success());
    let archive = fs::metadata(carried.path().join("carry.tar.xz")).unwrap().len();
    assert!(archive <= 45 * MIB, "{archive} bytes");

    let there = carry(carried.path());
    let there = there.path();
    let mut unpacking = Command::new("tar");
    let unpacked = unpacking.args(["-xJf", "carry.tar.xz"]).current_dir(there).status();
    assert!(unpacked.unwrap().success());
    let vtrain = there.join("with-libraries");
    let text = "#!/bin/sh\nLD_LIBRARY_PATH=${0%/*}/lib exec \"${0%/*}/vtrain\" \"$@\"\n";
    make_executable(&vtrain, text);
    let image = root().join("tests/fixtures/video/still.png");
    let checkpoint = root().join("tests/fixtures/cogvideox/cogvideox-5b-i2v");
    for (script, arguments) in [
        ("train.sh", [root(), Path::new("12")]),
        ("sample.sh", [&checkpoint, &image]),
    ] {
        let mut run = Command::new("bash");
        run.arg(there.join("gpu_check").join(script)).arg(&vtrain).arg("cpu");
        let output = run.args(arguments).output().unwrap();
        assert!(output.status.success(), "{script}: {}", said(&output));
        assert!(!said(&output).contains("FAIL"), "{script}: {}", said(&output));
    }
}

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn training_steps_of_all_families_stand_beside_those_of_the_peer() {
    let vtrain = env!("CARGO_BIN_EXE_vtrain");
    let folder = unpacked_with(&format!("#!/bin/bash\n[[ $1 != bench ]] || exec '{vtrain}' \"$@\"\n"));
    let output = visit(folder.path(), &crate::needs::python(), "3600").output().unwrap();
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("ours over the peer's").count(), 6, "{told}");
    assert!(!told.contains("by PyTorch: it is not all there"), "{told}");
}

/// A line of everything that the visit is for.
fn expect_rows(told: &str) {
    let all_of = |line: &str, parts: &[&str]| parts.iter().all(|part| line.contains(part));
    for parts in [
        &["nvidia-smi: none"][..],
        &["ldd (", ")"],
        &["ok ", "layer norm dx BF16"],
        &["ok ", "gated residual dgate F32"],
        &["ok ", "gelu (tanh) dx BF16"],
        &["ok ", "rotary, halves y BF16"],
        &["ok ", "swiglu odd dx BF16"],
        &["ok ", "tokens joined db BF16"],
        &["ok ", "part of the tokens dx F32"],
        &["ok ", "lora linear da BF16"],
        &["ok ", "attention 64 dq BF16", "[cpu]"],
        &["ok ", "attention 64, padded keys dv BF16", "[cpu]"],
        &["ok ", "attention 64, a sample without keys dq BF16", "[cpu]"],
        &["ok ", "attention 64, deterministic dk BF16", "[cpu]"],
        &["ok ", "attention 128 dv once more", "[cpu]"],
        &["ok ", "lora linear, dropout dx BF16"],
        &["ok ", "modulated silu, rms norm y BF16"],
        &["ok ", "convolution y BF16"],
        &["ok ", "group norm, ends twice y BF16"],
        &["ok ", "attention over time y BF16", "[cpu]"],
        &["ok ", "attention by frames y BF16"],
        &["ok ", "three steps of AdamW, "],
        &["ok ", "three steps of AdamW in 8 bits, "],
        &["ok ", "cogvideox-5b 5,32,32, keep: auto", "GiB at most", "[cpu]"],
        &["ok ", "cogvideox-5b 5,32,32, keep: all"],
        &["ok ", "cogvideox-5b 5,32,32, keep: inputs:"],
        &["ok ", "ltx-video-2b 9,64,64, keep: auto"],
        &["ok ", "wan-2.1-1.3b 5,32,32, keep: auto"],
        &["ok ", "allegro 8,32,32, keep: auto"],
        &["ok ", "mochi-1 7,32,32, keep: auto"],
        &["ok ", "hunyuan-video 5,32,32, keep: auto"],
        &["ok ", "cogvideox-5b 5,32,32, half of the blocks streamed: ", "blocks "],
        &["ok ", "cogvideox-5b 5,32,32, all blocks streamed: ", "blocks "],
        &[
            "ok ",
            "cogvideox-5b 5,32,32, activations offloaded: ",
            "of the time in memory",
        ],
        &["op ", " x attention backward"],
        &["op ", "outside of ops"],
        &["kernel ", " x product "],
        &["ok ", "hunyuan-t2v 3 training losses BF16", "[cpu]"],
        &["ok ", "hunyuan-i2v-concat image BF16"],
        &["ok ", "mochi-1 3 training losses BF16"],
        &["ok ", "mochi-1 frames BF16"],
        &["ok ", "allegro-t2v 3 training losses BF16"],
        &["ok ", "allegro-t2v latents BF16"],
        &["ok ", "allegro-t2v, 0 of the blocks stay, BF16: losses"],
        &[
            "ok ",
            "allegro-t2v, F32: blocks in memory at most, of those where half stay",
        ],
        &["ok ", "allegro-t2v, 0.5 of the blocks stay, BF16, nf4: adapters"],
        &["ok ", "mochi-1 bf16.safetensors and "],
        &["ok ", "cogvideox-2b 3 training losses F32", "[cpu]"],
        &["ok ", "wan-2.1-i2v 3 training losses with dropout BF16"],
        &["ok ", "wan-2.1-i2v latents BF16"],
        &["ok ", "cogvideox-2b gradients, keep: inputs+attention BF16"],
        &["ok ", "cogvideox-2b frames BF16"],
        &["ok ", "cogvideox-2b bf16.safetensors and "],
        &["ok ", "cogvideox-2b prompt BF16"],
        &["ok ", "wan-2.1-i2v image tokens BF16"],
        &["ok ", "tiled latents by tiles BF16"],
        &["ok ", "wan-2.1-i2v from an image f32.safetensors and "],
        &["ok ", "clips and captions are encoded"],
        &["ok ", "killed behind step"],
        &["ok ", "continued from a checkpoint to step"],
        &["ok ", "attention 70 x 64 dk BF16", "[cpu]"],
        &["NCCL"],
        &["seconds of 3600"],
    ] {
        assert!(told.lines().any(|line| all_of(line, parts)), "no line with {parts:?}");
    }
    let left_out: Vec<&str> = told.lines().filter(|line| line.starts_with("LEFT OUT")).collect();
    assert_eq!(left_out.len(), 6, "{left_out:?}");
    for line in left_out {
        assert!(line.ends_with("by PyTorch: it is not all there"), "{line}");
    }
}

/// A folder as the archive leaves it, with a program in vtrain's place.
fn unpacked_with(vtrain: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scripts = root().join("scripts");
    fs::copy(scripts.join("gpu_check.sh"), folder.path().join("gpu_check.sh")).unwrap();
    super::fuzz::copy(&scripts.join("gpu_check"), &folder.path().join("gpu_check"));
    fs::create_dir_all(folder.path().join("lib")).unwrap();
    make_executable(&folder.path().join("vtrain"), vtrain);
    folder
}

/// The visit in such a folder, with a Python that tells of its environment.
fn visit(folder: &Path, python: &Path, budget: &str) -> Command {
    let telling = folder.join("python");
    let text = format!(
        "#!/bin/bash\necho \"python is given ${{LD_LIBRARY_PATH:-no libraries}}\" >&2\nexec '{}' \"$@\"\n",
        python.display()
    );
    make_executable(&telling, &text);
    let mut command = Command::new("bash");
    command
        .arg(folder.join("gpu_check.sh"))
        .args(["--device", "cpu", "--size", "tiny", "--budget", budget, "--python"])
        .arg(telling)
        .current_dir(folder)
        .env_remove("LD_LIBRARY_PATH");
    command
}

#[test]
#[ignore = "needs visit: python3, xz and git"]
fn what_fails_or_hangs_costs_its_own_group_alone_and_is_looked_at_again() {
    let folder = unpacked_with(
        "#!/bin/bash\ncase \"$*\" in\n\
         *'group norm'*) echo \"ok   1 norm, libraries in $LD_LIBRARY_PATH\" ;;\n\
         *residual*) echo 'FAIL 2 of 1 residual y'; exit 5 ;;\n\
         *activation*) kill -SEGV $$ ;;\n\
         *'group linear'*) sleep 600 ;;\n\
         *) echo \"ok   1 $*\" ;;\nesac\n",
    );
    let sanitizer = folder.path().join("sanitizer");
    make_executable(
        &sanitizer,
        "#!/bin/bash\necho \"========= looked at: ${@:3}\"\necho noise\nexec \"${@:3}\"\n",
    );
    let began = Instant::now();
    let output = visit(folder.path(), Path::new("python3"), "25")
        .env("COMPUTE_SANITIZER", &sanitizer)
        .output()
        .unwrap();
    let told = said(&output);
    assert!(began.elapsed() < Duration::from_secs(300), "{told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    for line in [
        "FAIL 2 of 1 residual y",                // as it comes
        "FAIL ops: residual: 2 of 1 residual y", // at the end
        "FAIL ops: residual: exit code 5",
        "FAIL ops: activation: exit code 139",
        "LEFT OUT ops: attention: ",
        "LEFT OUT tiny checkpoints, sampling and a whole run: there is no repository here (--tree)",
        "LEFT OUT NCCL: ",
    ] {
        assert!(
            told.lines().any(|told| told.starts_with(line)),
            "no line '{line}' in {told}"
        );
    }
    assert!(told.contains("FAIL ops: linear: stopped after "), "{told}");
    assert!(
        told.lines()
            .any(|line| line.starts_with("ok ") && line.contains("rotary")),
        "{told}"
    );
    // Under the other program runs vtrain itself, with the same arguments.
    let looked = told.lines().filter(|line| line.starts_with("========= looked at"));
    let looked: Vec<&str> = looked.collect();
    assert!(
        looked[0].ends_with("/vtrain gpu-check --device cpu --group residual"),
        "{looked:?}"
    );
    assert!(
        looked[1].ends_with("/vtrain gpu-check --device cpu --group activation"),
        "{looked:?}"
    );
    assert!(!told.contains("noise"));
    // vtrain alone is told where libraries lie.
    let lib = folder.path().join("lib");
    assert!(
        told.contains(&format!("norm, libraries in {}", lib.display())),
        "{told}"
    );
    assert!(
        told.contains("python is given no libraries") && !told.contains("python is given /"),
        "{told}"
    );
}

#[test]
#[ignore = "needs visit: python3, xz and git"]
fn a_line_is_there_as_soon_as_it_is_known() {
    // The first group goes on when this test has read its line.
    let folder = unpacked_with(
        "#!/bin/bash\ncase \"$*\" in\n*'group norm'*)\n\
         echo 'ok   first'\n\
         while [[ ! -e ${0%/*}/read ]]; do sleep 0.1; done ;;\nesac\n",
    );
    let mut visit = visit(folder.path(), Path::new("python3"), "3600")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(visit.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.find(|line| line == "ok   first");
    assert!(first.is_some());
    // tee writes the log after the pipe, a moment later.
    let log = folder.path().join("gpu_check.log");
    let logged = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        fs::read_to_string(&log).unwrap().contains("ok   first")
    });
    assert!(logged, "{}", fs::read_to_string(&log).unwrap());
    fs::write(folder.path().join("read"), "").unwrap();
    lines.for_each(drop); // it goes on only as long as somebody reads
    visit.wait().unwrap();
}

/// A copy of the scripts in a repository of its own, with a file of so many bytes beside them.
fn repository(bytes: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    super::fuzz::copy(
        &root().join("scripts/gpu_check"),
        &folder.path().join("scripts/gpu_check"),
    );
    fs::copy(
        root().join("scripts/gpu_check.sh"),
        folder.path().join("scripts/gpu_check.sh"),
    )
    .unwrap();
    fs::File::create(folder.path().join("large"))
        .unwrap()
        .set_len(bytes)
        .unwrap();
    let made = Command::new("git").args(["init", "-q"]).arg(folder.path()).status();
    assert!(made.unwrap().success());
    folder
}

#[test]
#[ignore = "needs visit: python3, xz and git"]
fn packing_fails_where_the_tree_and_what_is_carried_are_too_large_together() {
    for (bytes, fits) in [(59 * MIB, true), (60 * MIB, false)] {
        let repository = repository(bytes);
        let script = repository.path().join("scripts/gpu_check.sh");
        let to = repository.path().join("carry"); // what is made there is counted once
        let mut packing = pack(
            &script,
            Path::new("/bin/true"),
            &to,
            &["--no-peer", "--ffmpeg", "system"],
        );
        let output = packing.output().unwrap();
        assert_eq!(output.status.success(), fits, "{}", said(&output));
        let too_large = "take more than 60.0 MiB together";
        assert_eq!(said(&output).contains(too_large), !fits, "{}", said(&output));
    }
}

#[test]
#[ignore = "needs visit: python3, xz and git"]
fn packing_fails_where_a_library_is_missing_that_no_other_machine_has() {
    let repository = repository(0);
    let folder = repository.path();
    fs::write(folder.join("own.c"), "int own(void) { return 0; }\n").unwrap();
    fs::write(
        folder.join("main.c"),
        "int own(void);\nint main(void) { return own(); }\n",
    )
    .unwrap();
    for arguments in [
        &["-shared", "-o", "libown.so", "own.c", "-Wl,-soname,libown.so.7"][..],
        &["-o", "program", "main.c", "libown.so"],
    ] {
        let built = Command::new("cc").args(arguments).current_dir(folder).status();
        assert!(built.unwrap().success());
    }
    let script = folder.join("scripts/gpu_check.sh");
    let mut packing = pack(
        &script,
        &folder.join("program"),
        &folder.join("carry"),
        &["--no-peer", "--ffmpeg", "system"],
    );
    let output = packing.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("libown.so.7, which vtrain needs, is not to be found here"),
        "{}",
        said(&output)
    );
}

#[test]
#[ignore = "needs git: it knows this tree"]
fn the_tracked_tree_stays_below_32_mib() {
    let mut list = Command::new("git");
    let listed = list.args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    assert!(listed.status.success(), "{}", said(&listed));
    let names = String::from_utf8(listed.stdout).unwrap();
    let files = names.split('\0').filter(|name| !name.is_empty());
    let sizes = files.filter_map(|name| fs::symlink_metadata(root().join(name)).ok()); // removed, and not yet told git
    let bytes: u64 = sizes.map(|file| file.len()).sum();
    println!("{:.1} MiB are tracked", bytes as f64 / MIB as f64);
    assert!(bytes > MIB && bytes < 32 * MIB, "{bytes} bytes are tracked");
}
