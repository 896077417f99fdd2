//! The figures, their floors and targets: as a table and as JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::site::Site;

/// What a figure is held against.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Of figure to floor.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtLeast(f64),
    AtMost(f64),
    /// Told for the explanation, held against nothing.
    None,
}

/// Above this, the figures say more about the machine than about the product.
const BUSY: f64 = 0.1;

pub(crate) struct Figure {
    row: u8,
    name: String,
    unit: &'static str,
    value: f64,
    floor: Option<f64>,
    target: Target,
}

impl Figure {
    fn ratio(&self) -> Option<f64> {
        self.floor.filter(|floor| *floor > 0.0).map(|floor| self.value / floor)
    }

    fn met(&self) -> Option<bool> {
        match self.target {
            Target::RatioAtLeast(least) => self.ratio().map(|ratio| ratio >= least),
            Target::RatioAtMost(most) => self.ratio().map(|ratio| ratio <= most),
            Target::AtLeast(least) => Some(self.value >= least),
            Target::AtMost(most) => Some(self.value <= most),
            Target::None => None,
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::RatioAtLeast(least) => format!(">= {least:.2} x"),
            Target::RatioAtMost(most) => format!("<= {most:.2} x"),
            Target::AtLeast(least) => format!(">= {}", number(least)),
            Target::AtMost(most) => format!("<= {}", number(most)),
            Target::None => String::new(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    /// Shares of the processors that others used, before and after.
    pub(crate) business: Vec<f64>,
}

impl Report {
    pub(crate) fn add(
        &mut self,
        row: u8,
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        floor: Option<f64>,
        target: Target,
    ) {
        let figure = Figure { row, name: name.into(), unit, value, floor, target };
        eprintln!("         {}: {} {unit}", figure.name, number(value));
        self.figures.push(figure);
    }

    pub(crate) fn json(&self, site: &Site) -> Value {
        let rows = self.figures.iter().map(|figure| {
            json!({
                "row": figure.row, "figure": figure.name, "unit": figure.unit, "value": figure.value,
                "floor": figure.floor, "ratio": figure.ratio(), "target": figure.target(), "met": figure.met(),
            })
        });
        json!({ "quick": site.quick, "used_by_others": self.business, "machine": site.machine(), "figures": rows.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:>3}  {:<name_width$}  {:>10} {:<8}  {:>10}  {:>6}  {:>10}  met",
            "row", "figure", "measured", "unit", "floor", "ratio", "target"
        )?;
        let mut figures: Vec<&Figure> = self.figures.iter().collect();
        figures.sort_by_key(|figure| figure.row);
        for figure in figures {
            let met = match figure.met() {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            };
            writeln!(
                f,
                "{:>3}  {:<name_width$}  {:>10} {:<8}  {:>10}  {:>6}  {:>10}  {met}",
                figure.row,
                figure.name,
                number(figure.value),
                figure.unit,
                figure.floor.map(number).unwrap_or_default(),
                figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
                figure.target(),
            )?;
        }
        let most = self.business.iter().copied().fold(0.0, f64::max);
        if most > BUSY {
            writeln!(
                f,
                "warning: others used up to {:.0} % of the processors: these figures are no record",
                most * 100.0
            )?;
        }
        Ok(())
    }
}

/// Three digits that count, or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle of several runs; 0 without any.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
