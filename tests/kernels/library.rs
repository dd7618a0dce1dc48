//! The kernels' files, unmodified, as one shared library for the CPU.
//!
//! Each `.cu` file becomes its own translation unit after emulator.hpp. Its kernels are found in the preprocessed text,
//! because macros make them. A library is kept by the contents of all that it is made of, for other tests and
//! processes.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null;
use std::sync::{Mutex, OnceLock, PoisonError};

use vtrain::ops::kernel::sources::SOURCES;
use vtrain::ops::kernel::{Argument, Launch};

/// Flags of both compilers. The traps need no library.
const FLAGS: &[&str] = &[
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fsanitize=alignment,bounds,integer-divide-by-zero,null,shift,signed-integer-overflow",
    "-fsanitize-undefined-trap-on-error",
    "-Wno-unknown-pragmas", // unroll
];

/// Headers of CUDA's that the kernels include: what they need of them is in emulator.hpp.
const EMPTY: [&str; 2] = ["cuda_bf16.h", "math_constants.h"];

/// A process has one emulator's worth of signal handlers.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A barrier: its file and line.
pub type Site = (String, i32);

type Listed = unsafe extern "C" fn(usize, *mut *const c_char, *mut *const c_char) -> bool;
type Barrier = unsafe extern "C" fn(usize, *mut *const c_char, *mut c_int) -> bool;
type LeaveOut = unsafe extern "C" fn(*const c_char, c_int);
type Run = unsafe extern "C" fn(*const c_char, *const usize, usize, usize, *const *const c_void, u32) -> *const c_char;

/// A loaded library. It stays for the life of the process.
pub struct Library {
    /// Each kernel's name, and its arguments in words.
    pub kernels: BTreeMap<String, String>,
    run: Run,
    barrier: Barrier,
    leave_out: LeaveOut,
}

/// The kernels as they are.
pub fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| Library::load(&built().library))
}

/// Same, for tests that modify it.
pub fn own_library() -> Library {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kernels.so");
    fs::copy(built().library, &copy).unwrap();
    Library::load(&copy)
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The kernels of `source` with the text `before` changed to `after` in `file`, which it includes or is.
pub fn patched(source: &'static str, file: &str, before: &str, after: &str) -> Library {
    let folder = tempfile::tempdir().unwrap();
    for name in sources_and_headers() {
        let to = folder.path().join(&name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let mut text = fs::read_to_string(root().join(&name)).unwrap();
        if name == file {
            assert_eq!(text.matches(before).count(), 1, "{file}: {before}");
            text = text.replace(before, after);
        }
        fs::write(to, text).unwrap();
    }
    let made = folder.path().join("kernels.so");
    compile(folder.path(), &[source], &built().emulator, &made);
    Library::load(&made)
}

/// Every `.cu` file, and headers of theirs.
fn sources_and_headers() -> Vec<String> {
    let mut all: Vec<String> = SOURCES.iter().map(|name| name.to_string()).collect();
    for entry in fs::read_dir(root().join("src/ops/cuda")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".cuh") {
            all.push(format!("src/ops/cuda/{name}"));
        }
    }
    all
}

/// Files that were compiled.
struct Built {
    /// The kernels and the emulator.
    library: PathBuf,
    /// The emulator alone, for other kernels.
    emulator: PathBuf,
}

/// The kernels as they are; compiled unless that is done already.
fn built() -> Built {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("kernels-{}", state());
    let found = Built {
        library: folder.join(&name).with_extension("so"),
        emulator: folder.join(&name).with_extension("o"),
    };
    let lock = fs::File::create(folder.join("kernels.lock")).unwrap();
    // SAFETY: the descriptor is open. The lock goes with it.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    if !found.library.exists() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("kernels-") {
                fs::remove_file(path).unwrap(); // of another state of the files
            }
        }
        let source = root().join("tests/kernels/emulator.cpp");
        cxx(&[Path::new("-c"), &source, Path::new("-o"), &found.emulator]);
        compile(root(), SOURCES, &found.emulator, &found.library);
    }
    found
}

/// The state of all that a library is made of, in some letters.
fn state() -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(compiler().1.as_bytes());
    let own = ["emulator.hpp", "fiber.hpp", "emulator.cpp", "library.rs"].map(|name| format!("tests/kernels/{name}"));
    for name in sources_and_headers().iter().chain(&own) {
        let text = fs::read(root().join(name)).unwrap();
        hash.update(format!("{name} {}", text.len()).as_bytes());
        hash.update(&text);
    }
    hash.finalize().to_hex()[..16].to_string()
}

/// The C++ compiler, and what it says of itself. Without one these tests fail: whatever builds the rest has one, too.
fn compiler() -> (&'static str, String) {
    for name in ["c++", "g++", "clang++"] {
        if let Ok(said) = Command::new(name).arg("--version").output() {
            return (name, String::from_utf8_lossy(&said.stdout).into_owned());
        }
    }
    panic!("no C++ compiler: the kernels are tested with g++ or clang++, which scripts/setup/system.sh installs");
}

/// Makes a library of files below `root`.
fn compile(root: &Path, sources: &[&'static str], emulator: &Path, made: &Path) {
    let folder = tempfile::tempdir().unwrap();
    for name in EMPTY {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let object = |name: &str| folder.path().join(format!("{}.o", name.replace('/', "-")));
    std::thread::scope(|scope| {
        for name in sources {
            let to = object(name);
            let folder = folder.path();
            scope.spawn(move || {
                let unit = to.with_extension("cpp");
                fs::write(&unit, unit_text(&root.join(name), folder)).unwrap();
                let include = format!("-I{}", folder.display());
                cxx(&[Path::new(&include), Path::new("-c"), &unit, Path::new("-o"), &to]);
            });
        }
    });
    let objects: Vec<PathBuf> = sources.iter().map(|name| object(name)).collect();
    let beside = made.with_extension("part");
    let mut arguments = vec![Path::new("-shared"), Path::new("-o"), &beside, emulator];
    arguments.extend(objects.iter().map(|object| object.as_path()));
    cxx(&arguments);
    fs::rename(beside, made).unwrap();
}

fn cxx(arguments: &[&Path]) -> String {
    let (name, version) = compiler();
    let mut command = Command::new(name);
    command.args(FLAGS).arg("-I").arg(root().join("tests/kernels"));
    if !version.contains("clang") {
        command.arg("-fno-extern-tls-init"); // shared memory of a kernel is made without a constructor
    }
    let done = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
    String::from_utf8(done.stdout).unwrap()
}

/// A unit around a file's text, which registers its kernels.
fn unit_text(source: &Path, headers: &Path) -> String {
    let include = format!("-I{}", headers.display());
    let preprocess = [include.as_str(), "-E", "-P", "-x", "c++"].map(Path::new);
    let expanded = cxx(&[&preprocess[..], &[source]].concat());
    let dynamic = dynamic_names(&expanded);
    let mut text = String::from("#include \"emulator.hpp\"\nnamespace {\n");
    for (kind, name) in &dynamic {
        // `extern __shared__ T name[]` becomes a pointer to an array, which each launch sets.
        text += &format!("constinit thread_local {kind} (*{name}_of_block)[] = nullptr;\n");
    }
    text += "void share_dynamic([[maybe_unused]] void *at) {\n";
    for (kind, name) in &dynamic {
        text += &format!("    {name}_of_block = static_cast<{kind} (*)[]>(at);\n");
    }
    text += "}\n";
    for (_, name) in &dynamic {
        text += &format!("#define {name} (*{name}_of_block)\n");
    }
    text += &format!("#include \"{}\"\n", source.display());
    for (_, name) in &dynamic {
        text += &format!("#undef {name}\n");
    }
    let kernels = kernel_names(&expanded);
    assert!(!kernels.is_empty(), "{}: no kernels were found", source.display());
    for name in kernels {
        text += &format!("EMULATED({name})\n");
    }
    text + "} // namespace\n"
}

/// Returns the text between the start of a declaration and the first of `ends`.
fn declared<'a>(text: &'a str, start: &'a str, ends: char) -> impl Iterator<Item = &'a str> {
    text.split(start)
        .skip(1)
        .filter_map(move |rest| rest.split(ends).next())
}

/// The names of kernels in a preprocessed text.
fn kernel_names(expanded: &str) -> Vec<String> {
    let words = expanded.split_whitespace().collect::<Vec<_>>().join(" ");
    let bare = strip_bounds(&words);
    let names = declared(&bare, "extern \"C\" __global__ void ", '(');
    names.map(|name| name.trim().to_string()).collect()
}

/// Removes `__launch_bounds__(...)`, which precedes a kernel's name.
fn strip_bounds(words: &str) -> String {
    let mut parts = words.split("__launch_bounds__");
    let mut bare = parts.next().unwrap_or_default().to_string();
    for part in parts {
        bare += part.split_once(')').map_or("", |(_, rest)| rest.trim_start());
    }
    bare
}

/// Types and names of arrays of dynamic shared memory, each once.
fn dynamic_names(expanded: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for declaration in declared(expanded, "extern __shared__ ", '[') {
        let (kind, name) = declaration.trim().rsplit_once(' ').expect("a type and a name");
        let pair = (kind.to_string(), name.to_string());
        if !found.contains(&pair) {
            found.push(pair);
        }
    }
    found
}

impl Library {
    fn load(made: &Path) -> Self {
        let path = CString::new(made.to_str().unwrap()).unwrap();
        // SAFETY: the library's constructors register kernels and touch nothing else.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        // SAFETY: after a failure dlerror gives words that end with a 0.
        assert!(!handle.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
        let symbol = |name: &CStr| {
            // SAFETY: the handle is of a library that is loaded.
            let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!found.is_null(), "{name:?}");
            found
        };
        // SAFETY: the types are those of emulator.cpp.
        let (listed, run, barrier, leave_out) = unsafe {
            (
                std::mem::transmute::<*mut c_void, Listed>(symbol(c"emulator_kernel")),
                std::mem::transmute::<*mut c_void, Run>(symbol(c"emulator_launch")),
                std::mem::transmute::<*mut c_void, Barrier>(symbol(c"emulator_barrier")),
                std::mem::transmute::<*mut c_void, LeaveOut>(symbol(c"emulator_leave_out")),
            )
        };
        let mut kernels = BTreeMap::new();
        let (mut name, mut arguments) = (null(), null());
        // SAFETY: the library writes pointers to words of its own that end with a 0.
        while unsafe { listed(kernels.len(), &raw mut name, &raw mut arguments) } {
            // SAFETY: as above.
            let word = |at| unsafe { CStr::from_ptr(at) }.to_str().unwrap().to_string();
            kernels.insert(word(name), word(arguments));
        }
        Self {
            kernels,
            run,
            barrier,
            leave_out,
        }
    }

    /// Runs a launch with the threads in this order; else what went wrong.
    pub fn run(&self, launch: &Launch, order: u32) -> Result<(), String> {
        let declared = self.kernels.get(&launch.kernel).ok_or("there is no such kernel")?;
        let given: Vec<String> = launch.arguments.iter().map(described).collect();
        if given.join(", ") != *declared {
            return Err(format!("it takes ({declared}) and was given ({})", given.join(", ")));
        }
        let pointers: Vec<*const c_void> = launch.arguments.iter().map(Argument::pointer).collect();
        let name = CString::new(launch.kernel.as_str()).unwrap();
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let grid = launch.grid;
        // SAFETY: the arguments are those of the kernel's declaration. What it does to memory that it was not given ends
        // in a signal that the emulator catches, or shows in the bytes around buffers.
        let said = unsafe {
            (self.run)(
                name.as_ptr(),
                grid.blocks.as_ptr(),
                grid.threads,
                grid.shared,
                pointers.as_ptr(),
                order,
            )
        };
        match said.is_null() {
            true => Ok(()),
            // SAFETY: words that end with a 0, until the next launch.
            false => Err(unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned()),
        }
    }

    /// The barriers that launches have come to.
    pub fn barriers(&self) -> Vec<Site> {
        let mut found = Vec::new();
        let (mut file, mut line) = (null(), 0);
        // SAFETY: the library writes a number and a pointer to words that end with a 0.
        while unsafe { (self.barrier)(found.len(), &raw mut file, &raw mut line) } {
            // SAFETY: as above.
            let file = unsafe { CStr::from_ptr(file) }.to_str().unwrap().to_string();
            found.push((file, line));
        }
        found
    }

    /// Runs `work` with a barrier left out.
    pub fn without<T>(&self, (file, line): &Site, work: impl FnOnce() -> T) -> T {
        let file = CString::new(file.as_str()).unwrap();
        // SAFETY: the words live until the library forgets them below.
        unsafe { (self.leave_out)(file.as_ptr(), *line) };
        let done = work();
        // SAFETY: as above.
        unsafe { (self.leave_out)(c"".as_ptr(), 0) };
        done
    }
}

/// An argument in the emulator's words.
fn described(argument: &Argument) -> String {
    match argument {
        Argument::Address(_) => "pointer".into(),
        Argument::I32(_) => "int".into(),
        Argument::I64(_) => "int64".into(),
        Argument::F32(_) => "float".into(),
        Argument::Structure(_) => format!("structure of {}", argument.size()),
    }
}
