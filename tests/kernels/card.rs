//! A card for one check: it runs launches in several orders of threads, from buffers at several places.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use candle_core::DType;
use vtrain::ops::kernel::{Address, Launch};

use super::library::Library;
use super::memory::{Buffer, Edge};

/// Orders of threads (as numbered, reversed, shuffled twice), with the end of its pages that a buffer is at.
const ORDERS: [(u32, Edge); 4] = [
    (0, Edge::Behind),
    (1, Edge::Before),
    (2, Edge::Behind),
    (77, Edge::Before),
];

/// Buffers that are misaligned by one number.
#[derive(Debug, Clone, Copy)]
enum Shifted {
    None,
    All,
    /// One, in the order in which they are made.
    Only(usize),
}

const SHIFTS: [Shifted; 5] = [
    Shifted::None,
    Shifted::All,
    Shifted::Only(0),
    Shifted::Only(1),
    Shifted::Only(2),
];

pub struct Card<'a> {
    library: &'a Library,
    launched: RefCell<BTreeSet<String>>,
}

/// One run of a case: what it makes lies and runs in one way.
pub struct Run<'a> {
    card: &'a Card<'a>,
    order: u32,
    edge: Edge,
    shifted: Shifted,
    made: Cell<usize>,
    launched: RefCell<BTreeSet<String>>,
}

/// A buffer of a run.
pub struct Lent(RefCell<Buffer>);

impl<'a> Card<'a> {
    pub fn new(library: &'a Library) -> Self {
        Self {
            library,
            launched: RefCell::default(),
        }
    }

    /// The kernels that ran.
    pub fn launched(&self) -> BTreeSet<String> {
        self.launched.borrow().clone()
    }

    /// Shows `check` the results of `work` for each placement of buffers; they are the same to the bit in every order of
    /// threads.
    pub fn each_way<T>(&self, what: &str, work: impl Fn(&Run) -> T, check: impl Fn(T))
    where
        T: AsRef<[Vec<f64>]>,
    {
        for shifted in SHIFTS {
            let mut first: Option<T> = None;
            for (order, edge) in ORDERS {
                let run = Run {
                    card: self,
                    order,
                    edge,
                    shifted,
                    made: Cell::new(0),
                    launched: RefCell::default(),
                };
                let found = work(&run);
                match &first {
                    None => first = Some(found),
                    Some(first) => assert!(
                        same(first.as_ref(), found.as_ref()),
                        "{:?}: other results in order {order}, buffers {shifted:?} off: {what}",
                        run.launched.borrow()
                    ),
                }
            }
            check(first.expect("there are orders"));
        }
    }
}

/// Checks that numbers are equal bit by bit.
fn same(a: &[Vec<f64>], b: &[Vec<f64>]) -> bool {
    let bits = |all: &[Vec<f64>]| all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

impl Run<'_> {
    /// Buffer that kernels may read.
    pub fn given(&self, numbers: &[f64], dtype: DType) -> Lent {
        let lent = self.changed(numbers, dtype);
        lent.0.borrow_mut().seal();
        lent
    }

    /// Buffer that kernels may read and write.
    pub fn changed(&self, numbers: &[f64], dtype: DType) -> Lent {
        let lent = self.room(numbers.len(), dtype);
        lent.0.borrow_mut().fill(numbers);
        lent
    }

    /// Buffer for numbers that a kernel writes.
    pub fn room(&self, count: usize, dtype: DType) -> Lent {
        let at = self.made.replace(self.made.get() + 1);
        let shift = match self.shifted {
            Shifted::None => 0,
            Shifted::All => 1,
            Shifted::Only(only) => usize::from(only == at),
        };
        Lent(RefCell::new(Buffer::new(count, dtype, self.edge, shift)))
    }

    /// Separate allocation, for what is never a part of something else.
    pub fn own_room(&self, count: usize, dtype: DType) -> Lent {
        Lent(RefCell::new(Buffer::new(count, dtype, self.edge, 0)))
    }

    /// Separate allocation that kernels may read.
    pub fn own(&self, numbers: &[f64], dtype: DType) -> Lent {
        let lent = self.own_room(numbers.len(), dtype);
        lent.0.borrow_mut().fill(numbers);
        lent.0.borrow_mut().seal();
        lent
    }

    /// Runs a launch; fails with the kernel's name.
    #[track_caller]
    pub fn launch(&self, launch: candle_core::Result<Launch>) {
        let launch = launch.unwrap();
        for launched in [&self.card.launched, &self.launched] {
            launched.borrow_mut().insert(launch.kernel.clone());
        }
        if let Err(why) = self.card.library.run(&launch, self.order) {
            panic!(
                "{}: {why}; order {}, buffers {:?} off at the {:?} edge: {launch:?}",
                launch.kernel, self.order, self.shifted, self.edge
            );
        }
    }
}

impl Lent {
    pub fn at(&self) -> Address {
        self.0.borrow().address()
    }

    /// Returns the numbers; fails if a kernel has written outside of them.
    #[track_caller]
    pub fn numbers(&self) -> Vec<f64> {
        let mut buffer = self.0.borrow_mut();
        assert!(buffer.kept(), "a kernel wrote beside a buffer");
        buffer.numbers()
    }
}
