//! Inputs of blocks parked elsewhere between the passes: on the CPU in a temporary file, on a GPU in main memory.
//!
//! The forward pass parks each block's input once the block has run; the backward pass takes them back in reverse, and a
//! thread reads the one before ahead. So memory holds two of them, however many blocks there are. A tensor that a block hands on
//! unchanged, as the embedded text, is kept in place, once. For a GPU main memory is pinned, and copied on a second stream, as
//! long as some of it stays free; what comes after is copied to ordinary memory.
//!
//! The file has no name: it is gone when the pass ends, however it ends. Numbers come back bit for bit.

mod host_memory;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use candle_core::{CpuStorage, Device, Error, Result, Shape, Storage, Tensor};
use half::bf16;

pub use host_memory::HostMemory;
use host_memory::HostTensor;

use crate::disk::WriteError;
use crate::models::denoiser::State;

/// A place for the inputs of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffloadTo {
    /// Main memory: for a GPU.
    HostMemory(HostMemory),
    /// A file without a name in this folder, or in the first one above that exists: for the CPU.
    FileIn(PathBuf),
}

/// Parked tensors of one pass.
#[derive(Debug)]
pub enum Parking {
    /// In main memory.
    HostMemory(HostMemory),
    /// In a file.
    File(ParkingFile),
}

/// A file that tensors are appended to.
#[derive(Debug)]
pub struct ParkingFile {
    file: Arc<File>,
    /// Where it lies, for messages.
    folder: PathBuf,
    /// Bytes written.
    end: u64,
}

/// A state that is parked, but for what the next one shares with it.
#[derive(Debug)]
pub struct ParkedState {
    /// The state's shapes and types, without numbers.
    outline: State,
    /// Tensors that stay; None for those parked.
    kept: Vec<Option<Tensor>>,
    away: Away,
}

/// The parked tensors of a state.
#[derive(Debug)]
enum Away {
    Parked(Vec<Parked>),
    /// A thread is reading them.
    Reading(io::Result<JoinHandle<Result<Vec<Tensor>>>>),
}

/// A tensor that is parked, and what it takes to get it back.
#[derive(Debug)]
struct Parked {
    place: Place,
    shape: Shape,
    /// True for a variable.
    learns: bool,
    device: Device,
}

#[derive(Debug)]
enum Place {
    Memory(HostTensor),
    File {
        file: Arc<File>,
        folder: PathBuf,
        start: u64,
        kind: Kind,
    },
}

/// A number format that is written to the file.
#[derive(Debug, Clone, Copy)]
enum Kind {
    F32,
    Bf16,
}

impl Parking {
    /// Opens the place.
    ///
    /// # Errors
    /// Fails if no file can be made in the folder.
    pub fn open(to: &OffloadTo) -> Result<Self> {
        match to {
            OffloadTo::HostMemory(memory) => Ok(Self::HostMemory(memory.clone())),
            OffloadTo::FileIn(folder) => ParkingFile::new(folder).map(Self::File),
        }
    }

    /// Parks a state, given the one that comes after it.
    ///
    /// # Errors
    /// Fails for a disk that is full or cannot be written; for memory that runs out.
    pub fn park(&mut self, state: &State, next: &State) -> Result<ParkedState> {
        let (mut kept, mut parked, mut outlines) = (Vec::new(), Vec::new(), Vec::new());
        for (tensor, next) in state.tensors().into_iter().zip(next.tensors()) {
            let one = Tensor::zeros(vec![1; tensor.rank()], tensor.dtype(), tensor.device())?;
            outlines.push(one.broadcast_as(tensor.shape())?);
            let away = match shares(&tensor, &next) {
                true => None,
                false => self.park_tensor(&tensor)?,
            };
            kept.push(away.is_none().then_some(tensor));
            parked.extend(away);
        }
        Ok(ParkedState {
            outline: state.with_tensors(outlines)?,
            kept,
            away: Away::Parked(parked),
        })
    }

    /// Parks a tensor; None for one that stays where it is: of other types than f32 and bf16 on the CPU.
    fn park_tensor(&mut self, tensor: &Tensor) -> Result<Option<Parked>> {
        let place = match self {
            Self::HostMemory(memory) => Some(Place::Memory(memory.park(tensor)?)),
            Self::File(file) => file.append(&tensor.detach().contiguous()?)?,
        };
        Ok(place.map(|place| Parked {
            place,
            shape: tensor.shape().clone(),
            learns: tensor.track_op(),
            device: tensor.device().clone(),
        }))
    }
}

impl ParkedState {
    /// Returns the tensors that stay in the device's memory.
    pub fn kept(&self) -> impl Iterator<Item = &Tensor> {
        self.kept.iter().flatten()
    }

    /// Begins to read it, on a thread where a copy keeps who asks for it waiting.
    ///
    /// # Errors
    /// Fails if the device has no room.
    pub fn read_ahead(&mut self) -> Result<()> {
        let Away::Parked(parked) = &mut self.away else {
            return Ok(());
        };
        let mut all_begun = true;
        for parked in parked.iter_mut() {
            all_begun &= parked.begin()?;
        }
        if !all_begun {
            let parked = std::mem::take(parked);
            let read = || parked.into_iter().map(Parked::read).collect();
            self.away = Away::Reading(thread::Builder::new().name("activations".into()).spawn(read));
        }
        Ok(())
    }

    /// Returns the state, once it is read.
    ///
    /// # Errors
    /// Fails for a file that cannot be read, memory that runs out, and if the system starts no thread.
    pub fn state(self) -> Result<State> {
        let tensors = match self.away {
            Away::Parked(parked) => parked.into_iter().map(Parked::read).collect::<Result<Vec<_>>>()?,
            Away::Reading(thread) => {
                let thread =
                    thread.map_err(|cause| Error::Msg(format!("no thread to read offloaded activations: {cause}")))?;
                let ended = |_| Error::Msg("the thread that reads offloaded activations ended early".into());
                thread.join().map_err(ended)??
            }
        };
        let mut tensors = tensors.into_iter();
        let all = self.kept.into_iter().filter_map(|kept| kept.or_else(|| tensors.next()));
        self.outline.with_tensors(all.collect())
    }
}

impl Parked {
    /// Begins to read it, if that keeps nobody waiting; true if it does.
    fn begin(&mut self) -> Result<bool> {
        match &mut self.place {
            Place::Memory(tensor) => tensor.begin(),
            Place::File { .. } => Ok(false),
        }
    }

    fn read(self) -> Result<Tensor> {
        match self.place {
            Place::Memory(tensor) => tensor.end(&self.device, self.learns),
            Place::File {
                file,
                folder,
                start,
                kind,
            } => {
                let storage = read(&file, start, self.shape.elem_count(), kind);
                let storage = storage.map_err(|cause| failed("read", &folder, &cause.to_string()))?;
                // A new leaf: nothing is copied to make it a variable.
                let none = candle_core::op::BackpropOp::none();
                Ok(Tensor::from_storage(
                    Storage::Cpu(storage),
                    self.shape,
                    none,
                    self.learns,
                ))
            }
        }
    }
}

impl ParkingFile {
    fn new(folder: &Path) -> Result<Self> {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        let folder = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(&absolute);
        let file = tempfile::tempfile_in(folder).map_err(|cause| unwritable(folder, cause))?;
        Ok(Self {
            file: Arc::new(file),
            folder: folder.into(),
            end: 0,
        })
    }

    /// Appends a contiguous tensor on the CPU.
    fn append(&mut self, tensor: &Tensor) -> Result<Option<Place>> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((first, last)) = layout.contiguous_offsets() else {
            return Ok(None);
        };
        let (kind, bytes) = match &*storage {
            Storage::Cpu(CpuStorage::F32(numbers)) => (Kind::F32, bytes_of(&numbers[first..last])),
            Storage::Cpu(CpuStorage::BF16(numbers)) => (Kind::Bf16, bytes_of(&numbers[first..last])),
            _ => return Ok(None),
        };
        let written = (&*self.file)
            .seek(SeekFrom::Start(self.end))
            .and_then(|_| (&*self.file).write_all(bytes));
        written.map_err(|cause| unwritable(&self.folder, cause))?;
        let start = self.end;
        self.end += bytes.len() as u64;
        Ok(Some(Place::File {
            file: self.file.clone(),
            folder: self.folder.clone(),
            start,
            kind,
        }))
    }
}

/// Reads so many numbers from `start` on.
fn read(mut file: &File, start: u64, count: usize, kind: Kind) -> io::Result<CpuStorage> {
    file.seek(SeekFrom::Start(start))?;
    match kind {
        Kind::F32 => {
            let mut numbers = vec![0f32; count];
            file.read_exact(bytes_of_mut(&mut numbers))?;
            Ok(CpuStorage::F32(numbers))
        }
        Kind::Bf16 => {
            let mut numbers = vec![bf16::ZERO; count];
            file.read_exact(bytes_of_mut(&mut numbers))?;
            Ok(CpuStorage::BF16(numbers))
        }
    }
}

/// True for tensors in the same storage.
fn shares(a: &Tensor, b: &Tensor) -> bool {
    let ((a, _), (b, _)) = (a.storage_and_layout(), b.storage_and_layout());
    std::ptr::eq(&raw const *a, &raw const *b)
}

/// Numbers of which every pattern of bits is one.
trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for bf16 {}

fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: the numbers have no padding, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

fn bytes_of_mut<T: Plain>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and all bytes are numbers.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

fn unwritable(folder: &Path, cause: io::Error) -> Error {
    failed("written", folder, &WriteError::at(folder)(cause).to_string())
}

fn failed(what: &str, folder: &Path, cause: &str) -> Error {
    Error::Msg(format!(
        "train.activation_policy: offloaded: the temporary file in {} could not be {what}: {cause}",
        folder.display()
    ))
}
