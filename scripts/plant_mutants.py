"""Sources with several bodies a function, for scripts/mutants.py: the usual one, and one for each mutant."""

import re

HOOK = """
/// True where the environment asks for this mutant. Deprecated so that the compiler tells which it has compiled.
#[deprecated]
pub fn mutant(number: usize) -> bool {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    static REACHED: [AtomicBool; 100_000] = [const { AtomicBool::new(false) }; 100_000];
    static CHOSEN: OnceLock<Option<usize>> = OnceLock::new();
    if !REACHED[number].load(Relaxed) && !REACHED[number].swap(true, Relaxed) {
        if let Some(path) = std::env::var_os("VTRAIN_REACHED") {
            if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
                let _ = std::io::Write::write_all(&mut file, format!("{number}\\n").as_bytes());
            }
        }
    }
    *CHOSEN.get_or_init(|| std::env::var("VTRAIN_MUTANT").ok()?.parse().ok()) == Some(number)
}
"""


def blanked(text):
    """The text with comments, strings and characters as spaces, at the same places."""
    quoted = r"""//[^\n]*|/\*.*?\*/|\bb?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^']+|[^\\'])'"""
    return re.sub(quoted, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.S)


def body(plain, start):
    """Where the body of the function that begins at `start` opens."""
    depth = 0
    for at in range(re.compile(r"\bfn\b").search(plain, start).start(), len(plain)):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(plain[at], 0)
        if plain[at] == "{" and depth == 0:
            return at + 1
    raise ValueError("a function without a body")


def planted(text, mutants):
    """The source with a second body for each mutant, and the lines that it takes there."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    place = lambda at: starts[at["line"] - 1] + at["column"] - 1
    plain, arms = blanked(text), []
    for mutant in mutants:
        function, span = mutant["function"]["span"], mutant["span"]
        opens, closes = body(plain, place(function["start"])), place(function["end"]) - 1
        arm = mutant["replacement"]
        if mutant["genre"] != "FnValue":
            arm = "{" + text[opens : place(span["start"])] + arm + text[place(span["end"]) : closes] + "}"
        arms.append((opens, mutant["number"], f" if crate::mutant({mutant['number']}) {{ return {arm}; }}\n"))
    out, last, lines = "", 0, {}
    for opens, number, arm in sorted(arms):
        out += text[last:opens]
        first = out.count("\n") + 1
        out, last = out + arm, opens
        lines[number] = (first, out.count("\n"))
    return out + text[last:], lines
