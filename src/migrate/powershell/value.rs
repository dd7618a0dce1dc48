//! Values of PowerShell's variables: texts, numbers and lists of them.

use super::super::script::trains;
use super::text::Text;
use super::{PowerShell, short};

/// Value of a variable.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    /// `True` or `False`
    Flag(bool),
    /// Operand of a numeric `+`, as written.
    Number(String),
    List(Vec<String>),
}

impl Value {
    pub fn items(self) -> Vec<String> {
        match self {
            Self::Text(text) | Self::Number(text) => vec![text],
            Self::Flag(true) => vec!["True".into()],
            Self::Flag(false) => vec!["False".into()],
            Self::List(items) => items,
        }
    }
}

impl PowerShell {
    /// Sets a variable, or adds to it.
    pub(super) fn assign(&mut self, name: &str, value: Option<Value>, appends: bool) -> Result<(), String> {
        let Some(value) = value else {
            self.variables.remove(name);
            return Ok(());
        };
        self.grow(match &value {
            Value::Flag(_) => 1,
            Value::Text(text) | Value::Number(text) => text.len(),
            Value::List(items) => items.iter().map(|item| item.len() + 1).sum(),
        })?;
        let value = match (appends, self.variables.remove(name)) {
            (true, Some(Value::Text(before))) => Value::Text(before + &value.items().join(" ")),
            (true, Some(Value::Number(_) | Value::Flag(_))) => {
                return Err(format!("${name} += is not computed: write the value"));
            }
            (true, Some(Value::List(mut items))) => {
                items.extend(value.items());
                Value::List(items)
            }
            (true, None) => return Err(format!("${name} += something, and what it held before is not known")),
            (false, _) => value,
        };
        if let Some(name) = name.strip_prefix("env:") {
            self.script.exported.push(name.to_uppercase());
        }
        self.variables.insert(name.to_string(), value);
        Ok(())
    }

    /// Returns the assigned value; None if it would have to be run.
    pub(super) fn value(&mut self, text: &mut Text) -> Result<Option<Value>, String> {
        text.skip_blank_and_lines()?;
        let start = text.clone();
        let Some(mut value) = self.term(text)? else {
            return self.not_read(text, start);
        };
        loop {
            text.skip_blank()?;
            if text.at_end_of_statement() {
                return Ok(Some(value));
            }
            let list = text.eat(",");
            if !list && !text.eat("+") {
                return self.not_read(text, start);
            }
            text.skip_blank_and_lines()?;
            let Some(next) = self.term(text)? else {
                return self.not_read(text, start);
            };
            value = match (list, value, next) {
                (false, Value::Text(a), b) => Value::Text(a + &b.items().join(" ")),
                (false, Value::Number(_) | Value::Flag(_), _) => return self.not_read(text, start),
                (_, a, b) => {
                    let mut items = a.items();
                    items.extend(b.items());
                    Value::List(items)
                }
            };
        }
    }

    fn not_read<'a>(&mut self, text: &mut Text<'a>, start: Text<'a>) -> Result<Option<Value>, String> {
        *text = start;
        let line = text.line();
        let rest = text.end_of_statement();
        if trains(&rest) {
            return Err(format!("line {line}: `{}` is not followed", short(&rest)));
        }
        self.script.remark(format!(
            "line {line}: `{}` is not run: what it sets is not known",
            short(&rest)
        ));
        Ok(None)
    }

    /// Reads a text, a number, a variable or a list.
    pub(super) fn term(&mut self, text: &mut Text) -> Result<Option<Value>, String> {
        text.eat_cast();
        if text.eat_any_case("[System.Collections.ArrayList]::new()")
            || text.eat_any_case("New-Object System.Collections.ArrayList")
        {
            return Ok(Some(Value::List(Vec::new())));
        }
        if text.eat("@(") || text.eat("(") {
            return self.list(text);
        }
        if let Some(string) = text.here_string()? {
            return Ok(Some(Value::Text(match string {
                (inner, true) => inner,
                (inner, false) => self.expand(&inner)?,
            })));
        }
        match text.peek() {
            Some('\'' | '"') => Ok(Some(Value::Text(self.quoted(text)?))),
            Some('$') => match text.variable() {
                // A property or an item of it.
                Some(_) if matches!(text.peek(), Some('.' | '[')) => Ok(None),
                Some(name) if name == "true" || name == "false" => Ok(Some(Value::Flag(name == "true"))),
                Some(name) => Ok(self.variables.get(&name).cloned()),
                None => Ok(None),
            },
            Some(c) if c.is_ascii_digit() || c == '-' => {
                let number = text.bare();
                Ok(number.parse::<f64>().is_ok().then_some(Value::Number(number)))
            }
            _ => Ok(None),
        }
    }

    /// Reads after `@(`: items between commas or on separate lines.
    fn list(&mut self, text: &mut Text) -> Result<Option<Value>, String> {
        let mut items = Vec::new();
        loop {
            text.skip_blank_and_lines()?;
            if text.eat(")") {
                return Ok(Some(Value::List(items)));
            }
            if text.eat(",") || text.eat(";") {
                continue;
            }
            text.deeper()?;
            let item = self.term(text)?;
            text.shallower();
            match item {
                Some(item) => items.extend(item.items()),
                None => return Ok(None),
            }
        }
    }
}
