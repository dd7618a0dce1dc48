//! `if` of PowerShell, if the script itself determines its condition.

use super::PowerShell;
use super::text::Text;
use super::value::Value;

impl PowerShell {
    /// Follows the branch that holds; if that is unknown, returns false and leaves the text unread.
    pub(super) fn branch(&mut self, text: &mut Text) -> Result<bool, String> {
        let mut ahead = text.clone();
        let mut chosen = None;
        loop {
            ahead.name();
            ahead.skip_blank_and_lines()?;
            if ahead.peek() != Some('(') {
                return Ok(false);
            }
            let test = ahead.bracketed('(', ')')?;
            let truth = match chosen {
                Some(_) => Some(false),
                None => self.truth(&test[1..test.len() - 1])?,
            };
            ahead.skip_blank_and_lines()?;
            let (Some(truth), Some('{')) = (truth, ahead.peek()) else {
                return Ok(false);
            };
            let block = ahead.block()?;
            if truth {
                chosen = Some(block);
            }
            let mut next = ahead.clone();
            next.skip_blank_and_lines()?;
            match next.word_ahead().to_lowercase().as_str() {
                "elseif" => ahead = next,
                "else" => {
                    next.name();
                    next.skip_blank_and_lines()?;
                    if next.peek() != Some('{') {
                        return Ok(false);
                    }
                    let block = next.block()?;
                    chosen = chosen.or(Some(block));
                    ahead = next;
                    break;
                }
                _ => break,
            }
        }
        if let Some(mut block) = chosen {
            self.follow(&mut block)?;
        }
        *text = ahead;
        Ok(true)
    }

    /// Evaluates `$x`, `!$x`, `$x -eq "text"`; None if unknown.
    fn truth(&mut self, test: &str) -> Result<Option<bool>, String> {
        let mut text = Text::new(test);
        text.skip_blank_and_lines()?;
        let negated = text.eat("!") || text.eat_any_case("-not ");
        text.skip_blank_and_lines()?;
        let Some(left) = self.known(&mut text)? else {
            return Ok(None);
        };
        if text.peek().is_none() {
            let holds = match left {
                Value::Flag(flag) => flag,
                Value::Number(number) => number.parse() != Ok(0.0),
                value => value.items().iter().any(|item| !item.is_empty()),
            };
            return Ok(Some(holds != negated));
        }
        let equal = match (text.eat_any_case("-eq "), text.eat_any_case("-ne ")) {
            (true, _) => true,
            (_, true) => false,
            _ => return Ok(None),
        };
        text.skip_blank_and_lines()?;
        let Some(right) = self.known(&mut text)? else {
            return Ok(None);
        };
        if negated || text.peek().is_some() {
            return Ok(None);
        }
        // PowerShell ignores case here, too.
        let same = match (left, right) {
            (Value::List(_), _) | (_, Value::List(_)) => return Ok(None),
            (a, b) => a.items().join(" ").to_lowercase() == b.items().join(" ").to_lowercase(),
        };
        Ok(Some(same == equal))
    }

    /// Returns a fully known value.
    fn known(&mut self, text: &mut Text) -> Result<Option<Value>, String> {
        let value = self.term(text)?;
        text.skip_blank_and_lines()?;
        let unread = &self.script.unread;
        Ok(value.filter(|value| {
            let items = value.clone().items();
            !items
                .iter()
                .any(|item| unread.iter().any(|left| item.contains(left.as_str())))
        }))
    }
}
