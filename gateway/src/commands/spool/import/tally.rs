//! What became of each envelope, and how it is told.

use pithead_hop::ingest::Answer;
use pithead_proto::errors::v1::ErrorReason;
use serde_json::{Value, json};

use crate::cli::Output;
use crate::envelopes::carried::Item;

/// Envelopes that are named one by one for a reason; the rest is counted.
const NAMED: usize = 100;

/// How everything ended.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The export had come to its end.
    whole: bool,
    stored: u64,
    duplicates: u64,
    conflicts: u64,
    refused: u64,
    damaged: u64,
    pub(super) lines_damaged: u64,
    pub(super) left_alone: u64,
    /// The first ones, with their reasons.
    named: Vec<(String, String, String)>,
}

impl Tally {
    /// Of nothing yet.
    pub(super) fn of(whole: bool) -> Self {
        Self { whole, ..Self::default() }
    }

    pub(super) fn take(&mut self, item: &Item, answer: Answer) {
        match answer {
            Answer::Stored => self.stored += 1,
            Answer::Duplicate { .. } => self.duplicates += 1,
            Answer::Conflict { kept: true } => self.conflicts += 1,
            Answer::Conflict { kept: false } => {
                let detail = "other bytes stand under its identity, and there is no room beside them";
                self.refused(item, Some(ErrorReason::Conflict), detail);
            }
            Answer::Refused { reason, detail } => self.refused(item, reason, &detail),
        }
    }

    pub(super) fn refused(&mut self, item: &Item, reason: Option<ErrorReason>, detail: &str) {
        self.refused += 1;
        let reason = reason
            .map_or_else(|| "UNKNOWN".to_owned(), |reason| format!("{} {}", reason.code(), reason.name()));
        self.name(item, reason, detail);
    }

    pub(super) fn damaged(&mut self, item: &Item, detail: &str) {
        self.damaged += 1;
        self.name(item, "DAMAGED".to_owned(), detail);
    }

    fn name(&mut self, item: &Item, reason: String, detail: &str) {
        if self.named.len() < NAMED {
            self.named.push((item.identity(), reason, detail.to_owned()));
        }
    }

    pub(super) fn all_held(&self) -> bool {
        self.whole && self.refused == 0 && self.damaged == 0 && self.lines_damaged == 0
    }

    pub(super) fn told(&self, output: Output) -> String {
        match output {
            Output::Json => crate::commands::json(&self.as_json()),
            Output::Table => self.as_text(),
        }
    }

    fn as_json(&self) -> Value {
        let named = self.named.iter().map(
            |(identity, reason, detail)| json!({ "identity": identity, "reason": reason, "detail": detail }),
        );
        json!({
            "complete": self.whole,
            "stored": self.stored,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "refused": self.refused,
            "damaged": self.damaged,
            "damaged_lines": self.lines_damaged,
            "left_alone": self.left_alone,
            "not_taken": named.collect::<Vec<_>>(),
        })
    }

    fn as_text(&self) -> String {
        let mut text = format!(
            "stored     {}\nduplicates {}\nconflicts  {}\nrefused    {}\ndamaged    {}\n",
            self.stored, self.duplicates, self.conflicts, self.refused, self.damaged
        );
        for (identity, reason, detail) in &self.named {
            text += &format!("  {identity}: {reason}: {detail}\n");
        }
        let unnamed = (self.refused + self.damaged).saturating_sub(self.named.len() as u64);
        if unnamed > 0 {
            text += &format!("  and {unnamed} more\n");
        }
        if self.lines_damaged > 0 {
            text += &format!("{} lines of the index cannot be read\n", self.lines_damaged);
        }
        if self.left_alone > 0 {
            text += &format!("{} had been refused before and were left alone (--refused)\n", self.left_alone);
        }
        if !self.whole {
            text += "the export had been cut short: this is what was there of it\n";
        }
        text
    }
}
