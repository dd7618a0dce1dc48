//! Products of whole matrices: `c = a1 b1 + a2 b2 + ...`, block by block, on all threads.
//!
//! The inner axes of all terms are walked one behind the other, in chunks whose part of b stays in the first cache while
//! the rows of a task pass by; the rows stay in the second cache. If several tasks need the same part of b, a strip of
//! its columns is packed once for all; else each task packs its own.

use std::ops::Range;

use rayon::prelude::*;

use super::Isa;
use super::block::Registers;
use super::left::Left;
use super::line::{Line, SIDE, Sums};
use super::pack::Rows;
use super::right::{Packed, Right};
use crate::process::allocations;

/// Steps of a chunk: 32 KiB of b.
const CHUNK: usize = 16;
/// Chunks of a stretch, after which the sums are put aside.
const STRETCH: usize = 5;
/// Steps of all rows of a task in a stretch: 1 MiB of a.
const HELD: usize = 512;
/// Most blocks of rows in a task.
const TALLEST: usize = 8;
/// Steps of all columns of a strip: 4 MiB of b.
const STRIP: usize = 2048;
/// Tasks for each thread, so that none waits long for another.
const TASKS: usize = 4;
/// Blocks of rows, at least, whose memory is recorded: what is recorded of few is to stand for many.
const MANY: usize = 32;
/// Most blocks of columns in a task that puts sums aside.
const WIDEST: usize = 32;

/// A left matrix a (rows, depth).
#[derive(Debug, Clone, Copy)]
pub enum LeftMatrix<'a> {
    /// Read where it is.
    Rows(Rows<'a>),
    /// In lines.
    Packed(&'a Packed),
}

/// A product that others are added to.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// Left matrix.
    pub left: LeftMatrix<'a>,
    /// Right matrix.
    pub right: Right<'a>,
}

/// Steps of one term that are multiplied together.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    term: usize,
    first: usize,
    count: usize,
    /// Steps before it, of all terms.
    at: usize,
}

/// A product, and how it is cut.
struct Product<'a> {
    isa: Isa,
    terms: &'a [Term<'a>],
    chunks: Vec<Chunk>,
    /// Steps of all terms.
    steps: usize,
    /// Blocks.
    rows: usize,
    cols: usize,
    /// Blocks of rows in a task.
    tall: usize,
}

/// Columns of the right matrices of all terms, packed.
struct Strip<'a> {
    lines: &'a [Line],
    first: usize,
}

/// A part of c that one thread computes, in blocks.
struct Task {
    rows: Range<usize>,
    cols: Range<usize>,
}

impl LeftMatrix<'_> {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Rows(a) => (a.rows(), a.cols()),
            Self::Packed(a) => (a.outer(), a.depth()),
        }
    }
}

/// Computes all blocks, and calls `each` with the first row, the first column and the sums of every block, on any thread.
/// `each` must not use rayon.
pub fn product(isa: Isa, terms: &[Term], each: impl Fn(usize, usize, &Sums) + Sync) {
    let Some(product) = Product::new(isa, terms) else {
        return;
    };
    let strip = product.strip();
    product.mention(strip);
    if allocations::is_recording() {
        return;
    }
    if product.steps == 0 || terms.iter().any(|term| term.right.is_outline()) {
        for row in 0..product.rows {
            (0..product.cols).for_each(|col| each(row * SIDE, col * SIDE, &Sums::ZERO));
        }
        return;
    }
    let Some(wide) = strip else {
        return product.run(0..product.cols, None, &each);
    };
    let mut lines = vec![Line::ZERO; wide * product.steps * SIDE];
    for first in (0..product.cols).step_by(wide) {
        let cols = first..(first + wide).min(product.cols);
        let lines = &mut lines[..cols.len() * product.steps * SIDE];
        product.pack(first, lines);
        product.run(cols, Some(Strip { lines, first }), &each);
    }
}

impl<'a> Product<'a> {
    /// Returns None for one without numbers.
    fn new(isa: Isa, terms: &'a [Term<'a>]) -> Option<Self> {
        let (mut chunks, mut steps) = (Vec::new(), 0);
        let (rows, cols) = (terms.first()?.left.size().0, terms.first()?.right.cols());
        for (term, Term { left, right }) in terms.iter().enumerate() {
            let sizes = (left.size(), (right.depth(), right.cols()));
            assert_eq!(
                sizes,
                ((rows, right.depth()), (left.size().1, cols)),
                "a product's sides"
            );
            let depth = right.depth().div_ceil(SIDE);
            for first in (0..depth).step_by(CHUNK) {
                let (count, at) = (CHUNK.min(depth - first), steps + first);
                chunks.push(Chunk { term, first, count, at });
            }
            steps += depth;
        }
        if rows * cols == 0 {
            return None;
        }
        let rows = match allocations::is_recording() {
            true => rows.div_ceil(SIDE).max(MANY),
            false => rows.div_ceil(SIDE),
        };
        let most = (HELD / steps.clamp(1, CHUNK * STRETCH)).clamp(1, TALLEST);
        Some(Self {
            isa,
            terms,
            chunks,
            steps,
            rows,
            cols: cols.div_ceil(SIDE),
            tall: rows.div_ceil(rows.div_ceil(most).max(1)),
        })
    }

    /// Returns the blocks of columns that are packed at a time for several tasks; None if tasks pack on their own.
    fn strip(&self) -> Option<usize> {
        let several = self.rows > self.tall;
        let packed = self.terms.iter().all(|term| matches!(term.right, Right::Packed(_)));
        (several && !packed && self.steps > 0).then(|| (STRIP / self.steps).clamp(1, self.cols))
    }

    /// Mentions the memory that it takes besides its operands and its result.
    fn mention(&self, strip: Option<usize>) {
        let line = size_of::<Line>();
        let shared = strip.unwrap_or(0) * self.steps * SIDE * line;
        let tasks = self.tasks(&(0..strip.unwrap_or(self.cols)));
        let wide = tasks.first().map_or(0, |task| task.cols.len());
        let sums = self.tall * if self.stretches() > 1 { wide } else { 1 };
        let (of_each, of_last) = self.edges();
        let of_last = of_last * SIDE * line;
        // If rows are cut, one task has the last ones.
        let (one, all) = if self.rows > self.tall {
            (of_last, 0)
        } else {
            (0, of_last)
        };
        let each = sums * size_of::<Sums>() + of_each * SIDE * line + all;
        allocations::elsewhere(shared + one, each, tasks.len());
    }

    /// Returns the steps of rows that a task packs in a stretch: of all its rows where steps reach beyond the inner axis, and of
    /// the last rows.
    fn edges(&self) -> (usize, usize) {
        let of_stretch = |stretch: &[Chunk]| {
            let (mut all, mut last) = (0, 0);
            for chunk in stretch {
                if let LeftMatrix::Rows(a) = self.terms[chunk.term].left {
                    match (a.cols().is_multiple_of(SIDE), a.rows().is_multiple_of(SIDE)) {
                        (false, _) => all += self.tall * chunk.count,
                        (true, false) => last += chunk.count,
                        (true, true) => {}
                    }
                }
            }
            (all, last)
        };
        self.chunks.chunks(STRETCH).map(of_stretch).max().unwrap_or_default()
    }

    fn stretches(&self) -> usize {
        self.chunks.chunks(STRETCH).len()
    }

    /// Packs the columns from block `first` on, as many as there are lines for.
    fn pack(&self, first: usize, lines: &mut [Line]) {
        let mut pieces = Vec::new();
        for (block, mut panel) in (first..).zip(lines.chunks_mut(self.steps * SIDE)) {
            for chunk in &self.chunks {
                let (piece, rest) = panel.split_at_mut(chunk.count * SIDE);
                pieces.push((block, chunk, piece));
                panel = rest;
            }
        }
        pieces.into_par_iter().for_each(|(block, chunk, lines)| {
            self.terms[chunk.term].right.pack(block, chunk.first, lines);
        });
    }

    /// Cuts columns into tasks: by rows, and by columns until there are enough.
    fn tasks(&self, cols: &Range<usize>) -> Vec<Task> {
        let groups = self.rows.div_ceil(self.tall);
        let wanted = (TASKS * rayon::current_num_threads()).div_ceil(groups);
        let most = if self.stretches() > 1 { WIDEST } else { usize::MAX };
        let wide = cols.len().div_ceil(wanted).min(most);
        let rows = (0..self.rows).step_by(self.tall);
        rows.flat_map(|row| {
            cols.clone().step_by(wide).map(move |col| Task {
                rows: row..(row + self.tall).min(self.rows),
                cols: col..(col + wide).min(cols.end),
            })
        })
        .collect()
    }

    fn run(&self, cols: Range<usize>, strip: Option<Strip>, each: &(impl Fn(usize, usize, &Sums) + Sync)) {
        let tasks = self.tasks(&cols).into_par_iter().with_max_len(1);
        tasks.for_each(|task| self.run_task(&task, strip.as_ref(), each));
    }

    fn run_task(&self, task: &Task, strip: Option<&Strip>, each: &impl Fn(usize, usize, &Sums)) {
        let registers = Registers::new(self.isa);
        let tall = task.rows.len();
        let stretches = self.chunks.chunks(STRETCH);
        let kept = if stretches.len() > 1 { task.cols.len() } else { 1 };
        let mut sums = vec![Sums::ZERO; tall * kept];
        let mut place = [Line::ZERO; CHUNK * SIDE];
        let (mut edges, mut lefts) = (Vec::new(), Vec::new());
        for (i, stretch) in stretches.clone().enumerate() {
            self.lefts(task, stretch, &mut edges, &mut lefts);
            for (j, col) in task.cols.clone().enumerate() {
                let sums = &mut sums[j % kept * tall..][..tall];
                for (l, (chunk, lefts)) in stretch.iter().zip(lefts.chunks_exact(tall)).enumerate() {
                    let b = self.panel(strip, col, chunk, &mut place);
                    for (left, sums) in lefts.iter().zip(&mut *sums) {
                        // SAFETY: both hold `count` steps: `panel` and `lefts` have checked it.
                        unsafe { registers.block(chunk.count, *left, b.as_ptr(), sums, i + l > 0) };
                    }
                }
                if i + 1 == stretches.len() {
                    for (row, sums) in task.rows.clone().zip(sums) {
                        each(row * SIDE, col * SIDE, sums);
                    }
                }
            }
        }
    }

    /// Finds the rows of a for each chunk of a stretch, and packs those at the edges.
    fn lefts(&self, task: &Task, stretch: &[Chunk], edges: &mut Vec<Line>, lefts: &mut Vec<Left>) {
        let whole = |chunk: &Chunk, row: usize| match &self.terms[chunk.term].left {
            LeftMatrix::Packed(a) => Some(Left::packed(a.lines(row, chunk.first, chunk.count).as_ptr())),
            LeftMatrix::Rows(a) => {
                let last = (chunk.first + chunk.count - 1) * SIDE;
                let start = a.whole_square(row * SIDE, last)?;
                Some(Left::rows(start.wrapping_sub(last - chunk.first * SIDE), a.stride()))
            }
        };
        let all = || {
            stretch
                .iter()
                .flat_map(|chunk| task.rows.clone().map(move |row| (chunk, row)))
        };
        let missing = all().filter(|(chunk, row)| whole(chunk, *row).is_none());
        edges.resize(missing.map(|(chunk, _)| chunk.count * SIDE).sum(), Line::ZERO);
        lefts.clear();
        let mut rest = &mut edges[..];
        for (chunk, row) in all() {
            let left = match (whole(chunk, row), &self.terms[chunk.term].left) {
                (None, LeftMatrix::Rows(a)) => {
                    let (lines, others) = rest.split_at_mut(chunk.count * SIDE);
                    rest = others;
                    for (step, lines) in (chunk.first..).zip(lines.as_chunks_mut().0) {
                        a.pack_left(row * SIDE, step * SIDE, lines);
                    }
                    Left::packed(lines.as_ptr())
                }
                (whole, _) => whole.expect("packed matrices are whole"),
            };
            lefts.push(left);
        }
    }

    /// Returns a chunk of a block of columns, packed.
    fn panel<'b>(&'b self, strip: Option<&'b Strip>, col: usize, chunk: &Chunk, place: &'b mut [Line]) -> &'b [Line] {
        let lines = chunk.count * SIDE;
        match (strip, self.terms[chunk.term].right) {
            (Some(strip), _) => &strip.lines[((col - strip.first) * self.steps + chunk.at) * SIDE..][..lines],
            (None, Right::Packed(b)) => b.lines(col, chunk.first, chunk.count),
            (None, right) => {
                right.pack(col, chunk.first, &mut place[..lines]);
                &place[..lines]
            }
        }
    }
}
