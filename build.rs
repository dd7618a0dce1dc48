//! Passes on the name of the profile, compiles the kernels with nvcc (feature `cuda`) and the shim over cuDNN (feature `cudnn`).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!(
        "cargo:rustc-env=VTRAIN_PROFILE={}",
        std::env::var("PROFILE").unwrap_or_default()
    );
    #[cfg(feature = "cuda")]
    cuda::build();
    #[cfg(feature = "cudnn")]
    cudnn::build();
}

#[cfg(feature = "cuda")]
#[path = "src/ops/kernel/sources.rs"]
mod sources;

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The oldest cards that the kernels are compiled for, unless CUDA_COMPUTE_CAP names older ones. The driver makes machine
    /// code for newer cards out of this as well.
    const OLDEST: u32 = 80;

    /// Where the libraries are looked for besides what the loader knows: beside the binary, and at the toolkit's usual places.
    const LIBRARIES: &[&str] = &["$ORIGIN/lib", "/usr/local/cuda/lib64", "/opt/cuda/lib64"];

    pub fn build() {
        for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        println!("cargo:rerun-if-changed=src/ops/kernel/sources.rs");
        println!("cargo:rerun-if-changed=src/ops/cuda/kernel.cuh");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        std::thread::scope(|scope| {
            for source in super::sources::SOURCES {
                println!("cargo:rerun-if-changed={source}");
                scope.spawn(|| compile(Path::new(source), &out));
            }
        });
        for library in LIBRARIES {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{library}");
        }
    }

    fn compile(source: &Path, out: &Path) {
        let name = source.file_stem().expect("a source has a name");
        let to = out.join(name).with_extension("ptx");
        let nvcc = nvcc();
        let status = Command::new(&nvcc)
            .args([
                "--ptx",
                "--std=c++17",
                "-O3",
                &format!("--gpu-architecture=compute_{}", card()),
            ])
            .arg("-o")
            .args([&to, source])
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{}: {} gave up, {status}", source.display(), nvcc.display()),
            Err(error) => panic!(
                "{} cannot be run ({error}); set CUDA_HOME to a CUDA toolkit",
                nvcc.display()
            ),
        }
    }

    fn nvcc() -> PathBuf {
        let home = || env::var_os("CUDA_HOME").or_else(|| env::var_os("CUDA_PATH"));
        match env::var_os("NVCC") {
            Some(nvcc) => nvcc.into(),
            None => home().map_or("nvcc".into(), |home| PathBuf::from(home).join("bin/nvcc")),
        }
    }

    /// The least compute capability that the kernels run on.
    fn card() -> u32 {
        let named = env::var("CUDA_COMPUTE_CAP").ok();
        let digits = named.as_deref().map(|named| named.replace('.', ""));
        digits
            .and_then(|digits| digits.trim_end_matches('a').parse().ok())
            .unwrap_or(OLDEST)
            .min(OLDEST)
    }
}

#[cfg(feature = "cudnn")]
mod cudnn {
    use std::env;
    use std::path::Path;

    const SHIM: &str = "src/ops/attention/cudnn_shim.cpp";

    /// The headers of cudnn-frontend lie beside the toolkit's, or where CUDNN_FRONTEND_INCLUDE says.
    pub fn build() {
        println!("cargo:rerun-if-changed={SHIM}");
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .file(SHIM)
            .define("NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING", None);
        build.warnings(false).opt_level(1); // the headers are large, and the time is spent in cuDNN
        for variable in ["CUDNN_FRONTEND_INCLUDE", "CUDNN_INCLUDE", "CUDA_HOME", "CUDA_PATH"] {
            println!("cargo:rerun-if-env-changed={variable}");
            let Some(folder) = env::var_os(variable) else { continue };
            let folder = Path::new(&folder);
            build.include(if variable.ends_with("INCLUDE") {
                folder.into()
            } else {
                folder.join("include")
            });
        }
        build.compile("vtrain_cudnn_shim");
    }
}
