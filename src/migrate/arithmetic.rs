//! Integer arithmetic of scripts: `$((...))` and `let` of a shell, `set /a` of cmd.
//!
//! `+ - * / %`, brackets, signs, comparisons and assignments, with C's precedence.

/// Limit for nested brackets.
const MOST_DEPTH: usize = 32;

/// Evaluates an expression whose names have the values of `value`; also returns the names that it sets.
///
/// # Errors
/// Fails for an unknown name or operator, a division by zero, and an overflow.
pub fn evaluate(text: &str, value: &dyn Fn(&str) -> Option<i64>) -> Result<(i64, Vec<(String, i64)>), String> {
    let mut result = 0;
    let mut set: Vec<(String, i64)> = Vec::new();
    for part in text.split(',') {
        let known = |name: &str| {
            let here = set.iter().rev().find(|(other, _)| other == name);
            here.map(|(_, n)| *n).or_else(|| value(name))
        };
        match assigned(part) {
            Some((name, operator, rest)) => {
                let right = Expression::whole(rest, &known)?;
                result = match operator {
                    None => right,
                    Some(operator) => {
                        let left = known(name).ok_or_else(|| format!("{name} has no value"))?;
                        apply(operator, left, right)?
                    }
                };
                set.push((name.to_string(), result));
            }
            None => result = Expression::whole(part, &known)?,
        }
    }
    Ok((result, set))
}

/// Parses `NAME = rest`, `NAME += rest`, `NAME++`.
fn assigned(text: &str) -> Option<(&str, Option<&'static str>, &str)> {
    let text = text.trim();
    for (ending, operator) in [("++", "+"), ("--", "-")] {
        if let Some(name) = text
            .strip_suffix(ending)
            .or_else(|| text.strip_prefix(ending))
            .map(str::trim)
            && super::shell::syntax::is_name(name)
        {
            return Some((name, Some(operator), "1"));
        }
    }
    let (left, rest) = text.split_once('=').filter(|(_, rest)| !rest.starts_with('='))?;
    let operator = ["+", "-", "*", "/", "%"]
        .into_iter()
        .find(|operator| left.trim_end().ends_with(operator));
    let name = left.trim_end().trim_end_matches(['+', '-', '*', '/', '%']).trim();
    super::shell::syntax::is_name(name).then_some((name, operator, rest))
}

fn apply(operator: &str, a: i64, b: i64) -> Result<i64, String> {
    let result = match operator {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" => a.checked_div(b),
        "%" => a.checked_rem(b),
        "<" => Some(i64::from(a < b)),
        ">" => Some(i64::from(a > b)),
        "<=" => Some(i64::from(a <= b)),
        ">=" => Some(i64::from(a >= b)),
        "==" => Some(i64::from(a == b)),
        "!=" => Some(i64::from(a != b)),
        _ => None,
    };
    result.ok_or_else(|| format!("{a} {operator} {b} cannot be computed"))
}

/// Operators of equal precedence, the lowest first.
const LEVELS: &[&[&str]] = &[&["==", "!="], &["<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

struct Expression<'a> {
    rest: &'a str,
    value: &'a dyn Fn(&str) -> Option<i64>,
    depth: usize,
}

impl<'a> Expression<'a> {
    fn whole(text: &'a str, value: &'a dyn Fn(&str) -> Option<i64>) -> Result<i64, String> {
        let mut expression = Self {
            rest: text.trim(),
            value,
            depth: 0,
        };
        let result = expression.level(0)?;
        match expression.rest {
            "" => Ok(result),
            rest => Err(format!("{} cannot be computed", rest.escape_debug())),
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = LEVELS.get(level) else {
            return self.atom();
        };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.rest.starts_with(**operator)) {
            self.eat(operator);
            let right = self.level(level + 1)?;
            left = apply(operator, left, right)?;
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(format!(
                "brackets or signs within each other, more than {MOST_DEPTH} deep"
            ));
        }
        let value = self.signed();
        self.depth -= 1;
        value
    }

    fn signed(&mut self) -> Result<i64, String> {
        if self.eat("-") {
            return apply("-", 0, self.atom()?);
        }
        if self.eat("+") {
            return self.atom();
        }
        if self.eat("(") {
            let inner = self.level(0)?;
            return match self.eat(")") {
                true => Ok(inner),
                false => Err("a ( is never closed".into()),
            };
        }
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        match word.parse::<i64>() {
            // A leading zero makes it octal.
            Ok(number) if word == "0" || !word.starts_with('0') => Ok(number),
            _ => (self.value)(word).ok_or_else(|| format!("{} has no value", word.escape_debug())),
        }
    }
}
