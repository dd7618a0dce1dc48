//! Attention by cuDNN's fused graphs, through the C functions of cudnn_shim.cpp.
//!
//! For bf16, head widths that are multiples of 8, and masks that are shared by all queries or small enough to be
//! expanded for each. A graph takes long to build, so it is cached by its shapes on the thread that built it. A shape
//! that cuDNN refuses is cached as well, logged once, and left to the kernels of tiled.cu.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{DType, Result, Tensor, bail};
use cudarc::driver::DevicePtr;

use super::bias::Bias;
use super::launch::{Read, ReadBack, Written};
use super::{Mask, Sizes};
use crate::ops::cuda::address_of;
use crate::ops::kernel::Address;
use crate::ops::{determinism, profile};

/// Largest size in bytes of a mask expanded to every query.
const MASK_BYTES: usize = 256 << 20;

/// `Shape` of the shim.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: i64,
    heads: i64,
    queries: i64,
    keys: i64,
    width: i64,
    bias_batch: i64,
    bias_heads: i64,
    bias_queries: i64,
    scale: f32,
    backward: i32,
    deterministic: i32,
}

const _: () = assert!(size_of::<Shape>() == 80); // as the shim asserts

/// Cache key of a graph: all of a shape but the scale, which follows from the width.
type Key = (DeviceId, [i64; 8], [i32; 2]);

/// `Operands` of the shim: 0 where absent.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Operands {
    q: Address,
    k: Address,
    v: Address,
    bias: Address,
    out: Address,
    log_sums: Address,
    grad: Address,
    dq: Address,
    dk: Address,
    dv: Address,
}

const WORDS: usize = 512;

unsafe extern "C" {
    fn vtrain_cudnn_open(handle: *mut *mut c_void, error: *mut c_char, size: usize) -> c_int;
    fn vtrain_cudnn_plan(
        handle: *mut c_void,
        shape: *const Shape,
        plan: *mut *mut c_void,
        workspace: *mut i64,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn vtrain_cudnn_run(
        handle: *mut c_void,
        plan: *mut c_void,
        stream: *mut c_void,
        operands: *const Operands,
        workspace: *mut c_void,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
}

/// A built graph. It lives as long as the process.
#[derive(Debug, Clone, Copy)]
struct Plan {
    handle: *mut c_void,
    plan: *mut c_void,
    workspace: usize,
}

/// This thread's cuDNN state.
#[derive(Default)]
struct PlanCache {
    /// None if cuDNN is unavailable.
    handles: HashMap<DeviceId, Option<*mut c_void>>,
    /// None if cuDNN refuses the shape.
    plans: HashMap<Key, Option<Plan>>,
    /// Last prepared mask, with its source.
    bias: Option<Ready>,
}

/// A mask in bf16, expanded to every query.
struct Ready {
    /// Mask as passed in. While it is held here, no other tensor can have its address.
    from: Tensor,
    queries: usize,
    bias: Rc<Bias>,
}

thread_local! {
    static PLANS: RefCell<PlanCache> = RefCell::default();
}

/// Calls the shim and returns its error message.
fn asked(call: impl FnOnce(*mut c_char, usize) -> c_int) -> std::result::Result<(), String> {
    let mut words = [0 as c_char; WORDS];
    match call(words.as_mut_ptr(), WORDS) {
        0 => Ok(()),
        // SAFETY: the shim ends its message with a 0.
        _ => Err(unsafe { CStr::from_ptr(words.as_ptr()) }.to_string_lossy().into_owned()),
    }
}

/// Writes the output and the log-sum-exp; returns false, with undefined contents, if cuDNN cannot.
///
/// # Errors
/// Fails if there is no memory for cuDNN's workspace.
pub(super) fn forward(
    device: &CudaDevice,
    sizes: &Sizes,
    mask: Option<&Mask>,
    dtype: DType,
    read: Read,
    [out, log_sums]: [Address; 2],
) -> Result<bool> {
    let operands = Operands {
        q: read.q,
        k: read.k,
        v: read.v,
        out,
        log_sums,
        ..Operands::default()
    };
    run(device, sizes, mask, dtype, operands)
}

/// Returns the queries of a mask that see a key: [`Bias::seeing`]. None if cuDNN does not take the mask.
pub(super) fn seeing(sizes: &Sizes, mask: &Mask) -> Result<Option<Tensor>> {
    Ok(bias(sizes, mask)?.map(|bias| bias.seeing.clone()))
}

/// Writes the gradients; returns false, with undefined contents, if cuDNN cannot.
///
/// # Errors
/// Same as [`forward`].
pub(super) fn back(
    device: &CudaDevice,
    sizes: &Sizes,
    mask: Option<&Mask>,
    dtype: DType,
    (read, also, written): (Read, ReadBack, Written),
) -> Result<bool> {
    let operands = Operands {
        q: read.q,
        k: read.k,
        v: read.v,
        out: also.out,
        log_sums: also.log_sums,
        grad: also.grad,
        dq: written.dq,
        dk: written.dk,
        dv: written.dv,
        bias: 0,
    };
    run(device, sizes, mask, dtype, operands)
}

fn run(device: &CudaDevice, sizes: &Sizes, mask: Option<&Mask>, dtype: DType, mut operands: Operands) -> Result<bool> {
    if dtype != DType::BF16 || !sizes.width.is_multiple_of(8) {
        return Ok(false);
    }
    let bias = match mask.map(|mask| bias(sizes, mask)) {
        None => None,
        Some(bias) => match bias? {
            Some(bias) => Some(bias),
            None => return Ok(false),
        },
    };
    let added = bias.as_ref().map(|bias| &bias.added);
    let shape = Shape::new(sizes, added, operands.grad != 0)?;
    let Some(plan) = plan(device, &shape) else {
        return Ok(false);
    };
    operands.bias = added.map_or(Ok(0), address_of)?;
    let stream = device.cuda_stream();
    // SAFETY: cuDNN writes the workspace before it reads it.
    let workspace = unsafe { device.alloc::<u8>(plan.workspace.max(1)) }?;
    let room = workspace.device_ptr(&stream).0;
    let _span = profile::kernel(device, || match shape.backward {
        0 => format!("cudnn attention {}", shape.words()),
        _ => format!("cudnn attention backward {}", shape.words()),
    });
    // SAFETY: the plan was built for these shapes by this handle; the addresses belong to tensors of these shapes.
    let ran = asked(|error, size| unsafe {
        let (stream, room) = (stream.cu_stream().cast(), room as *mut c_void);
        vtrain_cudnn_run(plan.handle, plan.plan, stream, &raw const operands, room, error, size)
    });
    match ran {
        Ok(()) => Ok(true),
        Err(why) => {
            log::warn!("cuDNN's attention for {shape:?} failed; using a slower kernel from now on: {why}");
            PLANS.with_borrow_mut(|known| known.plans.insert(shape.key(device.id()), None));
            Ok(false)
        }
    }
}

impl Shape {
    fn new(sizes: &Sizes, bias: Option<&Tensor>, backward: bool) -> Result<Self> {
        let (samples, heads, queries) = match bias {
            Some(bias) => {
                let (samples, heads, queries, _) = bias.dims4()?;
                (samples, heads, queries)
            }
            None => (0, 0, 0),
        };
        Ok(Self {
            batch: sizes.batch as i64,
            heads: sizes.heads as i64,
            queries: sizes.queries as i64,
            keys: sizes.keys as i64,
            width: sizes.width as i64,
            bias_batch: samples as i64,
            bias_heads: heads as i64,
            bias_queries: queries as i64,
            scale: sizes.scale(),
            backward: i32::from(backward),
            deterministic: i32::from(backward && determinism::required()),
        })
    }

    /// Label for logs: queries x keys x features of a head.
    fn words(&self) -> String {
        format!("{}x{}x{}", self.queries, self.keys, self.width)
    }

    fn key(&self, device: DeviceId) -> Key {
        let numbers = [
            self.batch,
            self.heads,
            self.queries,
            self.keys,
            self.width,
            self.bias_batch,
            self.bias_heads,
            self.bias_queries,
        ];
        (device, numbers, [self.backward, self.deterministic])
    }
}

/// Returns the graph of a shape, or None if cuDNN has none, which is logged the first time.
fn plan(device: &CudaDevice, shape: &Shape) -> Option<Plan> {
    let key = shape.key(device.id());
    if let Some(plan) = PLANS.with_borrow(|known| known.plans.get(&key).copied()) {
        return plan;
    }
    let handle = handle(device)?;
    let (mut plan, mut workspace) = (null_mut(), 0);
    // SAFETY: the shim reads a shape and writes a plan and a number.
    let built = asked(|error, size| unsafe {
        vtrain_cudnn_plan(
            handle,
            &raw const *shape,
            &raw mut plan,
            &raw mut workspace,
            error,
            size,
        )
    });
    let plan = match built {
        Ok(()) => Some(Plan {
            handle,
            plan,
            workspace: usize::try_from(workspace).unwrap_or(0),
        }),
        Err(why) => {
            log::warn!("cuDNN has no attention for {shape:?}; using a slower kernel: {why}");
            None
        }
    };
    PLANS.with_borrow_mut(|known| known.plans.insert(key, plan));
    plan
}

fn handle(device: &CudaDevice) -> Option<*mut c_void> {
    let id = device.id();
    if let Some(handle) = PLANS.with_borrow(|known| known.handles.get(&id).copied()) {
        return handle;
    }
    let mut handle = null_mut();
    let opened = match device.cuda_stream().context().bind_to_thread().w() {
        // SAFETY: the shim writes a handle.
        Ok(()) => asked(|error, size| unsafe { vtrain_cudnn_open(&raw mut handle, error, size) }),
        Err(error) => Err(error.to_string()),
    };
    let handle = match opened {
        Ok(()) => Some(handle),
        Err(why) => {
            log::warn!("attention uses a slower kernel: {why}");
            None
        }
    };
    PLANS.with_borrow_mut(|known| known.handles.insert(id, handle));
    handle
}

/// Returns a mask in cuDNN's form, or None if that would be too large.
fn bias(sizes: &Sizes, mask: &Mask) -> Result<Option<Rc<Bias>>> {
    let Some(table) = &mask.table else {
        bail!("attention: the mask is on another device than the queries");
    };
    let known = PLANS.with_borrow(|known| {
        let ready = known.bias.as_ref()?;
        (ready.queries == sizes.queries && ready.from.id() == table.id()).then(|| ready.bias.clone())
    });
    if known.is_some() {
        return Ok(known);
    }
    let (samples, heads, _, keys) = table.dims4()?;
    if samples * heads * sizes.queries * keys * DType::BF16.size_in_bytes() > MASK_BYTES {
        return Ok(None);
    }
    let bias = Rc::new(Bias::new(table, sizes.queries)?);
    PLANS.with_borrow_mut(|known| {
        known.bias = Some(Ready {
            from: table.clone(),
            queries: sizes.queries,
            bias: bias.clone(),
        });
    });
    Ok(Some(bias))
}
