//! TEMPORARY: the shape of the real generator, not its numbers.
pub struct Rng(u64);
impl Rng {
    pub fn new(seed: u64) -> Rng { Rng(seed) }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn rand(&mut self, n: usize) -> Vec<f32> { (0..n).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).collect() }
    pub fn randperm(&mut self, n: usize) -> Vec<usize> {
        let mut p: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() { p.swap(i, (self.next() % (i as u64 + 1)) as usize); }
        p
    }
}
