//! Figures, as SVG text.
//!
//! All ink is one colour, [`INK`], which the page replaces by that of its text, so that a figure is readable on a light
//! and on a dark page; the colours of series are mid-tones. Every figure's numbers are also in a table.

use crate::{StudyError, findings::Panel, measure::Measure, statistics::Estimate};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::{error::Error, ops::Range};

/// The colour of text and axes, as it stands in the SVG.
pub const INK: &str = "#404142";
const INK_COLOR: RGBColor = RGBColor(0x40, 0x41, 0x42);
/// Loss, in heat maps.
const HEAT: RGBColor = RGBColor(0xe8, 0x59, 0x0c);
/// Gain, in heat maps.
const COLD: RGBColor = RGBColor(0x1c, 0x7e, 0xd6);
/// Series in turn.
const SERIES: [RGBColor; 6] = [
    RGBColor(0x1c, 0x7e, 0xd6),
    RGBColor(0xe8, 0x59, 0x0c),
    RGBColor(0x2b, 0x8a, 0x3e),
    RGBColor(0x9c, 0x36, 0xb5),
    RGBColor(0xc9, 0x2a, 0x2a),
    RGBColor(0x0b, 0x72, 0x85),
];
const WIDTH: u32 = 640;
/// Height of a row of a figure that is a list.
const ROW: i32 = 30;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

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

fn drawn(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, StudyError> {
    let mut svg = String::new();
    let report = |error: &dyn Error| StudyError::Report(error.to_string());
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw(&area).map_err(|error| report(error.as_ref()))?;
        area.present().map_err(|error| report(&error))?;
    }
    Ok(svg)
}

fn style(size: i32, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK_COLOR).pos(Pos::new(horizontal, VPos::Center))
}

fn write(area: &Area<'_>, text: &str, place: (i32, i32), size: i32, horizontal: HPos) -> Drawn {
    Ok(area.draw(&Text::new(text.to_owned(), place, style(size, horizontal)))?)
}

fn line(area: &Area<'_>, points: [(i32, i32); 2], style: impl Into<ShapeStyle>) -> Drawn {
    Ok(area.draw(&PathElement::new(points.to_vec(), style))?)
}

/// Losses of calibration sets (down) on texts (across); a frame marks the text's own set.
pub fn heat_map(panel: &Panel) -> Result<String, StudyError> {
    let (left, top) = (150, 44);
    let columns = panel.evaluations.len().max(1) as i32;
    let cell = ((WIDTH as i32 - left - 16) / columns).min(120);
    let values = panel.entries.iter().flatten().flatten().map(|entry| entry.loss.value.abs());
    let largest = values.fold(f64::MIN_POSITIVE, f64::max);
    let height = top + (ROW + 8) * panel.sets.len() as i32 + 12;
    drawn(height as u32, |area| {
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
    })
}

/// Estimates with their intervals under each other, on one axis with a line at zero.
pub fn forest(measure: Measure, marks: &[Mark]) -> Result<String, StudyError> {
    let left = 250;
    let right = WIDTH as i32 - 24;
    let ends = range(marks.iter().flat_map(|mark| spread(measure, &mark.estimate)).chain([0.0]));
    let place = |value: f64| left + ((value - ends.start) / (ends.end - ends.start) * f64::from(right - left)) as i32;
    let height = ROW * marks.len() as i32 + 48;
    drawn(height as u32, |area| {
        let bottom = height - 40;
        line(area, [(place(0.0), 6), (place(0.0), bottom)], INK_COLOR.mix(0.5))?;
        line(area, [(left, bottom), (right, bottom)], INK_COLOR)?;
        for value in ticks(&ends) {
            line(area, [(place(value), bottom), (place(value), bottom + 5)], INK_COLOR)?;
            write(area, &measure.tick(value), (place(value), bottom + 18), 13, HPos::Center)?;
        }
        for (row, mark) in marks.iter().enumerate() {
            let y = ROW * row as i32 + ROW / 2 + 4;
            write(area, &mark.label, (left - 12, y), 14, HPos::Right)?;
            let color = SERIES[usize::from(mark.strong)];
            let [low, high] = spread(measure, &mark.estimate);
            line(area, [(place(low), y), (place(high), y)], color.stroke_width(2))?;
            area.draw(&Circle::new((place(measure.plotted(mark.estimate.value)), y), 5, color.filled()))?;
        }
        Ok(())
    })
}

/// Marks in the plane, numbered; strong ones are filled and joined: the front.
pub fn scatter(measure: Measure, marks: &[Mark], across: &str) -> Result<String, StudyError> {
    drawn(420, |area| {
        let (x, y) = (
            range(marks.iter().map(|mark| mark.x)),
            range(marks.iter().flat_map(|mark| spread(measure, &mark.estimate))),
        );
        let mut builder = ChartBuilder::on(area);
        let mut chart = builder.margin(14).x_label_area_size(52).y_label_area_size(84).build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK_COLOR.mix(0.15))
            .axis_style(INK_COLOR)
            .label_style(("sans-serif", 14).into_font().color(&INK_COLOR))
            .x_desc(across)
            .y_desc(measure.loss())
            .x_label_formatter(&|x| format!("{x:.1}"))
            .y_label_formatter(&|y| measure.tick((y * 1e6).round() / 1e6))
            .draw()?;
        let mut front: Vec<&Mark> = marks.iter().filter(|mark| mark.strong).collect();
        front.sort_by(|a, b| a.x.total_cmp(&b.x));
        let path: Vec<_> = front.iter().map(|mark| (mark.x, measure.plotted(mark.estimate.value))).collect();
        chart.draw_series([PathElement::new(path, SERIES[0].mix(0.6).stroke_width(2))])?;
        for mark in marks {
            let color = SERIES[usize::from(!mark.strong)];
            let [low, high] = spread(measure, &mark.estimate);
            chart.draw_series([PathElement::new(vec![(mark.x, low), (mark.x, high)], color.stroke_width(1))])?;
            let fill = if mark.strong { color.filled() } else { color.stroke_width(2) };
            let place = (mark.x, measure.plotted(mark.estimate.value));
            chart.draw_series([Circle::new(place, 5, fill)])?;
            let label = Text::new(mark.label.clone(), (9, -10), style(13, HPos::Left));
            chart.draw_series([EmptyElement::at(place) + label])?;
        }
        Ok(())
    })
}

/// Lines over a number, on a logarithmic axis, each with its name in the legend below.
pub fn lines(measure: Measure, lines: &[(String, Vec<(f64, Estimate)>)], across: &str) -> Result<String, StudyError> {
    let shown = &lines[..lines.len().min(SERIES.len())];
    let legend = if shown.len() > 1 { ROW * shown.len() as i32 } else { 0 };
    let height = 380 + legend;
    let points = || shown.iter().flat_map(|(_, points)| points);
    let levels = crate::results::distinct(points().map(|(x, _)| *x));
    drawn(height as u32, |area| {
        let (plot, below) = area.split_vertically(380);
        let y = range(points().flat_map(|(_, estimate)| spread(measure, estimate)));
        let x = range(levels.iter().map(|level| level.log2()));
        let mut builder = ChartBuilder::on(&plot);
        let mut chart =
            builder.margin(14).x_label_area_size(56).y_label_area_size(84).build_cartesian_2d(x, y.clone())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK_COLOR.mix(0.15))
            .axis_style(INK_COLOR)
            .label_style(("sans-serif", 14).into_font().color(&INK_COLOR))
            .x_labels(0)
            .x_desc(across)
            .y_desc(measure.loss())
            .y_label_formatter(&|y| measure.tick((y * 1e6).round() / 1e6))
            .draw()?;
        for level in &levels {
            let label = Text::new(level.to_string(), (0, 14), style(14, HPos::Center));
            chart.plotting_area().draw(&(EmptyElement::at((level.log2(), y.start)) + label))?;
        }
        for ((name, points), (color, row)) in shown.iter().zip(SERIES.iter().zip(0..)) {
            let path: Vec<_> = points.iter().map(|(x, estimate)| (x.log2(), measure.plotted(estimate.value))).collect();
            chart.draw_series([PathElement::new(path.clone(), color.stroke_width(2))])?;
            chart.draw_series(path.into_iter().map(|place| Circle::new(place, 4, color.filled())))?;
            for (x, estimate) in points {
                let [low, high] = spread(measure, estimate);
                let ends = vec![(x.log2(), low), (x.log2(), high)];
                chart.draw_series([PathElement::new(ends, color.stroke_width(1))])?;
            }
            if legend > 0 {
                let y = ROW * row + ROW / 2;
                below.draw(&Circle::new((100, y), 5, color.filled()))?;
                write(&below, name, (114, y), 14, HPos::Left)?;
            }
        }
        Ok(())
    })
}

/// How many of these lines [`lines`] has colours for.
pub fn lines_shown() -> usize {
    SERIES.len()
}

fn spread(measure: Measure, estimate: &Estimate) -> [f64; 2] {
    estimate.interval.unwrap_or([estimate.value; 2]).map(|end| measure.plotted(end))
}

/// From the least to the largest of `values` with some room, and never empty.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if !(low.is_finite() && high.is_finite()) {
        return 0.0..1.0;
    }
    let room = if high > low { 0.08 * (high - low) } else { 0.1 * high.abs().max(1e-3) };
    low - room..high + room
}

/// About five round values inside `ends`.
fn ticks(ends: &Range<f64>) -> Vec<f64> {
    let rough = (ends.end - ends.start) / 4.0;
    let power = 10.0_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (ends.start / step).ceil() as i64;
    let last = (ends.end / step).floor() as i64;
    // Rounded where a multiple of a decimal step is not exact.
    (first..=last).map(|index| (index as f64 * step * 1e6).round() / 1e6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(label: &str, x: f64, value: f64, interval: Option<[f64; 2]>) -> Mark {
        let estimate = Estimate { value, interval, seeds: 1, seed_deviation: None };
        Mark { label: label.to_owned(), x, estimate, strong: x > 3.0 }
    }

    #[test]
    fn figures_are_drawn_of_whatever_there_is() {
        for marks in [
            vec![mark("a & b", 2.0, 0.1, Some([0.05, 0.2])), mark("c", 4.0, 0.01, None)],
            vec![mark("alone", 4.0, 0.0, None)],
            Vec::new(),
        ] {
            for svg in
                [forest(Measure::Perplexity, &marks).unwrap(), scatter(Measure::Divergence, &marks, "across").unwrap()]
            {
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(!svg.contains("a & b"), "text is escaped");
            }
        }
    }

    #[test]
    fn lines_have_a_legend_where_there_are_several() {
        let of = |mark: Mark| (mark.x, mark.estimate);
        let one = ("first".to_owned(), vec![of(mark("", 2.0, 0.3, None)), of(mark("", 8.0, 0.1, Some([0.0, 0.2])))]);
        assert!(!lines(Measure::Task, std::slice::from_ref(&one), "samples").unwrap().contains("first"));
        let other = ("second".to_owned(), one.1.clone());
        let svg = lines(Measure::Task, &[one, other], "samples").unwrap();
        assert!(svg.contains("first") && svg.contains("second"));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(&(-0.1..0.35)), [0.0, 0.2]);
        assert_eq!(ticks(&(0.0..4.0)), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(range([3.0].into_iter()), 2.7..3.3);
    }
}
