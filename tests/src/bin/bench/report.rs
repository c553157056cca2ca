//! What a bench prints: one row a number, beside the number that it is held against in the same run.

use serde::Serialize;

/// One number with its name, and what it is compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Row<T> {
    /// Its name, for ever.
    pub(crate) name: String,
    /// The number.
    pub(crate) value: f64,
    /// Of what.
    pub(crate) unit: &'static str,
    /// What it is held against; none if that is not here.
    pub(crate) baseline: Option<String>,
    /// The baseline's own number, in the same unit.
    pub(crate) baseline_value: Option<f64>,
    /// `value` by `baseline_value`.
    pub(crate) ratio: Option<f64>,
    /// What it was measured on.
    #[serde(flatten)]
    pub(crate) facts: T,
}

impl<T: Serialize> Row<T> {
    /// A number with nothing beside it.
    pub(crate) fn alone(name: impl Into<String>, value: f64, unit: &'static str, facts: T) -> Self {
        Self {
            name: name.into(),
            value: rounded(value),
            unit,
            baseline: None,
            baseline_value: None,
            ratio: None,
            facts,
        }
    }

    /// The same beside what it is held against.
    pub(crate) fn against(mut self, baseline: impl Into<String>, value: f64) -> Self {
        self.ratio = (value > 0.0).then(|| rounded(self.value / value));
        self.baseline = Some(baseline.into());
        self.baseline_value = Some(rounded(value));
        self
    }

    /// One JSON object on one line, or a line for a person.
    #[expect(clippy::print_stdout, reason = "the result of a bench is its output")]
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let mut line = format!("{:<20} {:>12} {}", self.name, shown(self.value), self.unit);
        if let (Some(baseline), Some(value)) = (&self.baseline, self.baseline_value) {
            let ratio = self.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            line.push_str(&format!("   {ratio} x {} ({baseline})", shown(value)));
        }
        println!("{line}");
        if let serde_json::Value::Object(facts) = serde_json::to_value(&self.facts)? {
            let facts: Vec<String> =
                facts.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
            if !facts.is_empty() {
                println!("  {}", facts.join(", "));
            }
        }
        Ok(())
    }
}

/// Something that a person should know beside the numbers: on standard error, so that `--json` stays JSON.
#[expect(clippy::print_stderr, reason = "what a bench left out, and why")]
pub(crate) fn note(words: impl std::fmt::Display) {
    eprintln!("{words}");
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shown(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Four digits behind the point: more would be noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// The value in the middle of some.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The value below which this share of all lies, of values in ascending order.
pub(crate) fn quantile(ascending: &[u32], share: f64) -> f64 {
    let at = (ascending.len() as f64 * share) as usize;
    ascending.get(at.min(ascending.len().saturating_sub(1))).copied().map_or(0.0, f64::from)
}
