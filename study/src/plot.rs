//! Figures of studies: the domain matrix, and the shared ones with axes of losses.

use crate::{StudyError, findings::Panel, measure::Measure, statistics::Estimate};
use console::plot::{self, Axis, INK_COLOR, ROW, WIDTH, drawn, write};
use plotters::{prelude::*, style::text_anchor::HPos};

/// Loss, in heat maps.
const HEAT: RGBColor = RGBColor(0xe8, 0x59, 0x0c);
/// Gain, in heat maps.
const COLD: RGBColor = RGBColor(0x1c, 0x7e, 0xd6);

/// A mark with its interval.
pub struct Mark {
    /// What stands beside it.
    pub label: String,
    /// Its place on the horizontal axis; lists have none.
    pub x: f64,
    /// A loss or a difference of losses: its place on the vertical axis of a plot, or on the axis of a list.
    pub estimate: Estimate,
    /// Whether it is to stand out.
    pub strong: bool,
}

impl Mark {
    fn plain(&self, scale: Scale) -> plot::Mark {
        let Estimate { value, interval, .. } = self.estimate;
        let place = |value| scale.place(value);
        let (value, interval) = (place(value), interval.map(|ends| ends.map(place)));
        plot::Mark { label: self.label.clone(), x: self.x, value, interval, strong: self.strong }
    }
}

/// How losses become places on an axis: as they are told, or, where a ratio exceeds [`FACTOR`], by their decades.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    Told(Measure),
    Decades(Measure),
}

/// Ratios up to this stand on a linear axis together.
const FACTOR: f64 = 11.0;

impl Scale {
    fn of<'a>(measure: Measure, estimates: impl Iterator<Item = &'a Estimate>) -> Self {
        let ends = estimates.flat_map(|estimate| [estimate.value, estimate.interval.map_or(0.0, |ends| ends[1])]);
        let largest = ends.filter(|value| value.is_finite()).fold(0.0, f64::max);
        if measure.is_ratio() && largest > FACTOR.ln() { Self::Decades(measure) } else { Self::Told(measure) }
    }

    fn place(self, loss: f64) -> f64 {
        match self {
            Self::Told(measure) => measure.plotted(loss),
            Self::Decades(_) => loss / std::f64::consts::LN_10,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Told(measure) => measure.loss().to_owned(),
            Self::Decades(measure) => format!("{}, as a factor", measure.loss()),
        }
    }

    /// A place without what binary fractions add to it, in words.
    fn tick(self, place: f64) -> String {
        let place = (place * 1e6).round() / 1e6;
        match self {
            Self::Told(measure) => measure.tick(place),
            Self::Decades(_) if place.abs() < 1.0 => format!("\u{d7}{:.1}", 10f64.powf(place)),
            Self::Decades(_) if place <= 4.0 => format!("\u{d7}{:.0}", 10f64.powf(place)),
            Self::Decades(_) => format!("\u{d7}10^{place}"),
        }
    }
}

/// Losses of calibration sets (down) on texts (across); a frame marks the text's own set.
pub fn heat_map(panel: &Panel) -> Result<String, StudyError> {
    let (left, top) = (150, 44);
    let columns = panel.evaluations.len().max(1) as i32;
    let cell = ((WIDTH as i32 - left - 16) / columns).min(120);
    let values = panel.entries.iter().flatten().flatten().map(|entry| entry.loss.value.abs());
    let largest = values.fold(f64::MIN_POSITIVE, f64::max);
    let height = top + (ROW + 8) * panel.sets.len() as i32 + 12;
    let svg = drawn(height as u32, |area| {
        for (column, evaluation) in panel.evaluations.iter().enumerate() {
            let middle = left + cell * column as i32 + cell / 2;
            write(area, evaluation, (middle, top / 2), 15, HPos::Center)?;
        }
        for (row, (set, entries)) in panel.sets.iter().zip(&panel.entries).enumerate() {
            let y = top + (ROW + 8) * row as i32;
            write(area, set, (left - 10, y + ROW / 2), 15, HPos::Right)?;
            for (column, entry) in entries.iter().enumerate() {
                let x = left + cell * column as i32;
                let corners = [(x + 2, y), (x + cell - 2, y + ROW + 4)];
                let Some(entry) = entry else {
                    write(area, "open", (x + cell / 2, y + ROW / 2), 14, HPos::Center)?;
                    continue;
                };
                let color = if entry.loss.value > 0.0 { HEAT } else { COLD };
                let strength = 0.06 + 0.6 * entry.loss.value.abs() / largest;
                area.draw(&Rectangle::new(corners, color.mix(strength).filled()))?;
                if entry.own {
                    area.draw(&Rectangle::new(corners, INK_COLOR.stroke_width(2)))?;
                }
                write(
                    area,
                    &panel.measure.change(entry.loss.value),
                    (x + cell / 2, y + ROW / 2 + 2),
                    15,
                    HPos::Center,
                )?;
            }
        }
        Ok(())
    })?;
    Ok(svg)
}

/// Estimates with their intervals under each other, on one axis with a line at zero.
pub fn forest(measure: Measure, marks: &[Mark]) -> Result<String, StudyError> {
    let scale = Scale::of(measure, marks.iter().map(|mark| &mark.estimate));
    let marks: Vec<plot::Mark> = marks.iter().map(|mark| mark.plain(scale)).collect();
    Ok(plot::forest(&marks, Axis { name: &scale.name(), write: &|place| scale.tick(place) })?)
}

/// Marks in the plane, numbered; strong ones are filled and joined: the front.
pub fn scatter(measure: Measure, marks: &[Mark], across: &str) -> Result<String, StudyError> {
    let scale = Scale::of(measure, marks.iter().map(|mark| &mark.estimate));
    let marks: Vec<plot::Mark> = marks.iter().map(|mark| mark.plain(scale)).collect();
    let across = Axis { name: across, write: &|x| format!("{x:.1}") };
    Ok(plot::scatter(&marks, across, Axis { name: &scale.name(), write: &|place| scale.tick(place) })?)
}

/// Lines over a number, on a logarithmic axis, each with its name in the legend below.
pub fn lines(measure: Measure, lines: &[(String, Vec<(f64, Estimate)>)], across: &str) -> Result<String, StudyError> {
    let scale = Scale::of(measure, lines.iter().flat_map(|(_, points)| points).map(|(_, estimate)| estimate));
    let mark = |(x, estimate): &(f64, Estimate)| {
        Mark { label: String::new(), x: *x, estimate: *estimate, strong: false }.plain(scale)
    };
    let lines: Vec<plot::Line> =
        lines.iter().map(|(name, points)| (name.clone(), points.iter().map(mark).collect())).collect();
    Ok(plot::lines(&lines, across, Axis { name: &scale.name(), write: &|place| scale.tick(place) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_where_their_measure_puts_them() {
        let estimate = Estimate { value: 0.1, interval: Some([0.0, 0.2]), seeds: 1, seed_deviation: None };
        let mark = Mark { label: "a".to_owned(), x: 2.0, estimate, strong: false };
        let plain = mark.plain(Scale::of(Measure::Perplexity, [&estimate].into_iter()));
        assert!((plain.value - 10.517).abs() < 1e-3 && plain.interval.unwrap()[0] == 0.0);
        assert_eq!(mark.plain(Scale::Told(Measure::Divergence)).value, 0.1);
        let ticks = [-2.5, 0.0, 0.1 + 0.2].map(|place| Scale::Told(Measure::Perplexity).tick(place));
        assert_eq!(ticks, ["\u{2212}2.5 %", "0 %", "+0.3 %"]);
    }

    #[test]
    fn large_ratios_stand_by_their_decades() {
        let wide = Estimate { value: 1.0, interval: Some([0.5, 1e4_f64.ln()]), seeds: 2, seed_deviation: None };
        let scale = Scale::of(Measure::Perplexity, [&wide].into_iter());
        assert_eq!(scale, Scale::Decades(Measure::Perplexity));
        assert!((scale.place(1000.0_f64.ln()) - 3.0).abs() < 1e-12);
        assert_eq!(
            [0.0, 0.5, 2.0, 5.0].map(|place| scale.tick(place)),
            ["\u{d7}1.0", "\u{d7}3.2", "\u{d7}100", "\u{d7}10^5"]
        );
        assert_eq!(Scale::of(Measure::Divergence, [&wide].into_iter()), Scale::Told(Measure::Divergence));
    }
}
