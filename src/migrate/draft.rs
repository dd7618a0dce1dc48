//! A run file under construction: code shared by the trainers' migrations.

use super::Source;
use super::document::Document;
use super::flags::{Flag, Number, Reader};

/// A script's flags during their conversion to keys.
pub struct Draft<'a> {
    pub source: &'a Source,
    pub document: Document,
    pub flags: Reader,
    /// Comment on a value without a flag.
    pub default: &'static str,
}

/// Schedules of the trainers that vtrain has.
const SCHEDULES: &[&str] = &[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
];

/// Optimisers that update weights like AdamW, except for their storage of moments.
const ADAMW: &[&str] = &[
    "adamw",
    "adamw8bit",
    "adamw32bit",
    "adamw-8bit",
    "adamw-bnb",
    "adamw-bnb-8bit",
    "pagedadamw",
    "pagedadamw8bit",
    "pagedadamw32bit",
];
const ADAM: &[&str] = &["adam", "adam8bit", "adam-8bit", "adam-bnb", "adam-bnb-8bit"];

impl Draft<'_> {
    /// Sets `section.key` from a flag with one number, else from the trainer's default.
    pub fn number<T: Number + Into<serde_json::Value>>(
        &mut self,
        name: &str,
        section: &str,
        key: &str,
        default: Option<T>,
    ) {
        let given = self.flags.has(name);
        let said = self.flags.said(name);
        match self.flags.number::<T>(name) {
            Some(value) => self.set(section, key, value, &said),
            None if given => {}
            None => {
                if let Some(value) = default {
                    let from = self.default;
                    self.set(section, key, value, from);
                }
            }
        }
    }

    pub fn set(&mut self, section: &str, key: &str, value: impl Into<serde_json::Value>, from: &str) {
        self.document.root.block(section).set(key, value, from);
    }

    pub fn remark(&mut self, flag: &Flag, why: &str) {
        self.document.remark(flag.typed(), why);
    }

    /// Sets `section.key` from a switch.
    pub fn onoff(&mut self, name: &str, section: &str, key: &str) {
        let given = self.flags.switch(name);
        let from = match given {
            true => self.flags.said(name),
            false => self.default.to_string(),
        };
        self.set(section, key, given, &from);
    }

    /// Converts `--max_grad_norm`, given the trainer's meaning of 0. inf disables clipping.
    pub fn clipping(&mut self, zero: Zero) {
        let name = "max_grad_norm";
        let Some(text) = self.flags.text(name) else {
            let from = self.default;
            return self.set("train", name, 1.0, from);
        };
        let from = format!("--{name} {text}");
        match text.trim().parse::<f64>() {
            Ok(norm) if norm == f64::INFINITY => self.set("train", name, serde_json::Value::Null, &from),
            Ok(0.0) if zero == Zero::NoClipping => self.set("train", name, serde_json::Value::Null, &from),
            Ok(0.0) => self.flags.problems.push(format!(
                "--{name}: 0 makes all gradients 0 there, and nothing is learnt: give a norm above 0, or inf for no clipping"
            )),
            Ok(norm) if norm > 0.0 && norm.is_finite() => self.set("train", name, norm, &format!("--{name}")),
            _ => self.flags.problems.push(format!(
                "--{name}: expected a number of at least 0, found '{}'",
                text.escape_debug()
            )),
        }
    }

    /// Converts `--lr_scheduler`, if vtrain has it, and returns its name.
    pub fn schedule(&mut self) -> String {
        let flag = self.flags.take("lr_scheduler");
        let name = flag
            .as_ref()
            .map_or("constant".to_string(), |flag| flag.values.join(" "));
        match &flag {
            Some(flag) if !SCHEDULES.contains(&name.as_str()) => {
                self.flags.wrong(
                    flag,
                    &format!("is one of {}: vtrain has no other", SCHEDULES.join(", ")),
                );
            }
            Some(_) => self.set("lr_scheduler", "name", name.as_str(), "--lr_scheduler"),
            None => {
                let from = self.default;
                self.set("lr_scheduler", "name", name.as_str(), from);
            }
        }
        name
    }

    /// Converts an optimiser's name. AdamW is vtrain's; another one's learning rate would not fit AdamW.
    pub fn optimizer_name(&mut self, flag: &Flag) {
        let said = flag.values.join(" ");
        let name = said.to_lowercase().replace('_', "-");
        // As in `bitsandbytes.optim.AdamW8bit`
        let name = name.rsplit('.').next().unwrap_or(&name);
        let from = flag.typed();
        let own = match name.ends_with("8bit") {
            true => "adamw8bit",
            false => "adamw",
        };
        if ADAMW.contains(&name) {
            self.set("optimizer", "name", own, &from);
            if name.starts_with("paged") {
                self.remark(flag, "vtrain keeps all moments where the adapters are, without paging");
            }
        } else if ADAM.contains(&name) {
            self.set("optimizer", "name", own, &from);
            self.remark(
                flag,
                "vtrain has adamw, which keeps the decay apart from the gradient: without weight_decay they are the same",
            );
        } else {
            self.flags.problems.push(format!(
                "--{} {}: vtrain has adamw and adamw8bit alone, and another optimiser's learning rate does not fit AdamW: migrate the \
                 script with adamw and the learning rate that you want",
                flag.name,
                said.escape_debug()
            ));
        }
    }
}

/// Meaning of `--max_grad_norm 0` to a trainer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Zero {
    /// Gradients are unchanged.
    NoClipping,
    /// Gradients are scaled to norm 0.
    Clips,
}
