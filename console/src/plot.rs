//! Figures, as SVG text.
//!
//! All ink is one colour, [`INK`], which a page replaces by that of its text, so that a figure is readable on a light
//! and on a dark page; the colours of series are mid-tones. Every figure's numbers belong in a table as well.

use crate::page::PageError;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::{error::Error, ops::Range};

/// The colour of text and axes, as it stands in the SVG.
pub const INK: &str = "#404142";
/// The same.
pub const INK_COLOR: RGBColor = RGBColor(0x40, 0x41, 0x42);
/// Series in turn.
pub const SERIES: [RGBColor; 6] = [
    RGBColor(0x1c, 0x7e, 0xd6),
    RGBColor(0xe8, 0x59, 0x0c),
    RGBColor(0x2b, 0x8a, 0x3e),
    RGBColor(0x9c, 0x36, 0xb5),
    RGBColor(0xc9, 0x2a, 0x2a),
    RGBColor(0x0b, 0x72, 0x85),
];
/// Width of every figure.
pub const WIDTH: u32 = 640;
/// Height of a row of a figure that is a list.
pub const ROW: i32 = 30;
/// Characters of a label of a list that fit beside it.
const LABEL: usize = 34;

/// What is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What drawing gives.
pub type Drawn = Result<(), Box<dyn Error>>;

/// A number with its interval.
pub struct Mark {
    /// What stands beside it.
    pub label: String,
    /// Its place on the horizontal axis; lists have none.
    pub x: f64,
    /// The number.
    pub value: f64,
    /// Its interval.
    pub interval: Option<[f64; 2]>,
    /// Whether it is to stand out.
    pub strong: bool,
}

/// An axis.
#[derive(Clone, Copy)]
pub struct Axis<'a> {
    /// What it measures.
    pub name: &'a str,
    /// How its numbers are written.
    pub write: &'a dyn Fn(f64) -> String,
}

/// An SVG of `height` that `draw` draws.
pub fn drawn(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, PageError> {
    let mut svg = String::new();
    let report = |error: &dyn Error| PageError(error.to_string());
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

/// Writes `text`, its middle at the height of `place`.
pub fn write(area: &Area<'_>, text: &str, place: (i32, i32), size: i32, horizontal: HPos) -> Drawn {
    Ok(area.draw(&Text::new(text.to_owned(), place, style(size, horizontal)))?)
}

/// Draws a line.
pub fn line(area: &Area<'_>, points: [(i32, i32); 2], style: impl Into<ShapeStyle>) -> Drawn {
    Ok(area.draw(&PathElement::new(points.to_vec(), style))?)
}

/// Numbers with their intervals under each other, on one axis with a line at zero.
pub fn forest(marks: &[Mark], axis: Axis<'_>) -> Result<String, PageError> {
    let left = 250;
    let right = WIDTH as i32 - 32;
    let ends = range(marks.iter().flat_map(spread).chain([0.0]));
    let place = |value: f64| left + ((value - ends.start) / (ends.end - ends.start) * f64::from(right - left)) as i32;
    let height = ROW * marks.len() as i32 + 68;
    drawn(height as u32, |area| {
        let bottom = height - 60;
        line(area, [(place(0.0), 6), (place(0.0), bottom)], INK_COLOR.mix(0.5))?;
        line(area, [(left, bottom), (right, bottom)], INK_COLOR)?;
        for value in ticks(&ends) {
            line(area, [(place(value), bottom), (place(value), bottom + 5)], INK_COLOR)?;
            write(area, &(axis.write)(value), (place(value), bottom + 18), 13, HPos::Center)?;
        }
        write(area, axis.name, (i32::midpoint(left, right), bottom + 44), 14, HPos::Center)?;
        for (row, mark) in marks.iter().enumerate() {
            let y = ROW * row as i32 + ROW / 2 + 4;
            write(area, &cut(&mark.label), (left - 12, y), 14, HPos::Right)?;
            let color = SERIES[usize::from(mark.strong)];
            let [low, high] = spread(mark);
            line(area, [(place(low), y), (place(high), y)], color.stroke_width(2))?;
            area.draw(&Circle::new((place(mark.value), y), 5, color.filled()))?;
        }
        Ok(())
    })
}

/// `label` as far as there is room for it.
fn cut(label: &str) -> String {
    if label.chars().count() <= LABEL {
        return label.to_owned();
    }
    label.chars().take(LABEL - 1).chain(['…']).collect()
}

/// Marks in the plane; strong ones are filled and joined.
pub fn scatter(marks: &[Mark], across: Axis<'_>, up: Axis<'_>) -> Result<String, PageError> {
    let (x, y) = (range(marks.iter().map(|mark| mark.x)), range(marks.iter().flat_map(spread)));
    plane(420, x, y, across, up, |chart| {
        let mut joined: Vec<&Mark> = marks.iter().filter(|mark| mark.strong).collect();
        joined.sort_by(|a, b| a.x.total_cmp(&b.x));
        let path: Vec<_> = joined.iter().map(|mark| (mark.x, mark.value)).collect();
        chart.draw_series([PathElement::new(path, SERIES[0].mix(0.6).stroke_width(2))])?;
        for mark in marks {
            let color = SERIES[usize::from(!mark.strong)];
            let [low, high] = spread(mark);
            chart.draw_series([PathElement::new(vec![(mark.x, low), (mark.x, high)], color.stroke_width(1))])?;
            let fill = if mark.strong { color.filled() } else { color.stroke_width(2) };
            chart.draw_series([Circle::new((mark.x, mark.value), 5, fill)])?;
            let label = Text::new(mark.label.clone(), (9, -10), style(13, HPos::Left));
            chart.draw_series([EmptyElement::at((mark.x, mark.value)) + label])?;
        }
        Ok(())
    })
}

/// Many points in the plane, with a line across at `level`.
pub fn cloud(points: &[(f64, f64)], level: f64, across: Axis<'_>, up: Axis<'_>) -> Result<String, PageError> {
    let x = range(points.iter().map(|point| point.0));
    let y = range(points.iter().map(|point| point.1).chain([level]));
    let ends = [(x.start, level), (x.end, level)];
    plane(360, x, y, across, up, |chart| {
        chart.draw_series([PathElement::new(ends.to_vec(), INK_COLOR.mix(0.6).stroke_width(1))])?;
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, SERIES[0].mix(0.7).filled())))?;
        Ok(())
    })
}

/// Numbers with their intervals over classes that have an order, from left to right.
pub fn classes(marks: &[Mark], across: &str, up: Axis<'_>) -> Result<String, PageError> {
    // Not below zero where nothing is: what is drawn here are sizes, seen against nothing.
    let y = range(marks.iter().flat_map(spread).chain([0.0]));
    let y = if marks.iter().flat_map(spread).all(|end| end >= 0.0) { 0.0..y.end } else { y };
    let x = -0.5..(marks.len().max(1) as f64 - 0.5);
    let plain = Axis { name: across, write: &|_| String::new() };
    plane(360, x, y.clone(), plain, up, |chart| {
        for (index, mark) in marks.iter().enumerate() {
            let (x, color) = (index as f64, SERIES[usize::from(mark.strong)]);
            let [low, high] = spread(mark);
            chart.draw_series([PathElement::new(vec![(x, low), (x, high)], color.stroke_width(2))])?;
            chart.draw_series([Circle::new((x, mark.value), 5, color.filled())])?;
            let label = Text::new(mark.label.clone(), (0, 14), style(12, HPos::Center));
            chart.plotting_area().draw(&(EmptyElement::at((x, y.start)) + label))?;
        }
        Ok(())
    })
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Coordinate, Coordinate>>;
type Coordinate = plotters::coord::types::RangedCoordf64;

/// Axes and a mesh, and `draw` in them.
fn plane(
    height: u32,
    x: Range<f64>,
    y: Range<f64>,
    across: Axis<'_>,
    up: Axis<'_>,
    draw: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Result<String, PageError> {
    drawn(height, |area| {
        let mut builder = ChartBuilder::on(area);
        let mut chart =
            builder.margin(14).x_label_area_size(52).y_label_area_size(84).build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK_COLOR.mix(0.15))
            .axis_style(INK_COLOR)
            .label_style(("sans-serif", 14).into_font().color(&INK_COLOR))
            .x_labels(7)
            .y_labels(7)
            .x_desc(across.name)
            .y_desc(up.name)
            .x_label_formatter(&|at| (across.write)(on_axis(&x, *at)))
            .y_label_formatter(&|at| (up.write)(on_axis(&y, *at)))
            .draw()?;
        draw(&mut chart)
    })
}

/// A line: its name and its points, each with an interval.
pub type Line = (String, Vec<Mark>);

/// Lines over a number, on a logarithmic axis, each with its name in the legend below.
pub fn lines(lines: &[Line], across: &str, up: Axis<'_>) -> Result<String, PageError> {
    let shown = &lines[..lines.len().min(SERIES.len())];
    let legend = if shown.len() > 1 { ROW * shown.len() as i32 } else { 0 };
    let height = 380 + legend;
    let points = || shown.iter().flat_map(|(_, points)| points);
    let mut levels: Vec<f64> = points().map(|mark| mark.x).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    drawn(height as u32, |area| {
        let (plot, below) = area.split_vertically(380);
        let y = range(points().flat_map(spread));
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
            .y_desc(up.name)
            .y_label_formatter(&|at| (up.write)(on_axis(&y, *at)))
            .draw()?;
        for level in &levels {
            let label = Text::new(level.to_string(), (0, 14), style(14, HPos::Center));
            chart.plotting_area().draw(&(EmptyElement::at((level.log2(), y.start)) + label))?;
        }
        for ((name, points), (color, row)) in shown.iter().zip(SERIES.iter().zip(0..)) {
            let path: Vec<_> = points.iter().map(|mark| (mark.x.log2(), mark.value)).collect();
            chart.draw_series([PathElement::new(path.clone(), color.stroke_width(2))])?;
            chart.draw_series(path.into_iter().map(|place| Circle::new(place, 4, color.filled())))?;
            for mark in points {
                let [low, high] = spread(mark);
                let ends = vec![(mark.x.log2(), low), (mark.x.log2(), high)];
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

fn spread(mark: &Mark) -> [f64; 2] {
    mark.interval.unwrap_or([mark.value; 2])
}

/// `value` as a tick of an axis that reaches over `ends`: what is left of a difference that should be nothing is nothing.
fn on_axis(ends: &Range<f64>, value: f64) -> f64 {
    if value.abs() < 1e-9 * (ends.end - ends.start) { 0.0 } else { rounded(value) }
}

/// `value` without the last digits, in which sums of steps are not what they are in decimals.
fn rounded(value: f64) -> f64 {
    // Nothing has no sign, not even a negative nothing.
    format!("{value:.9e}").parse().unwrap_or(value) + 0.0
}

/// From the least to the largest of `values` with some room, and never empty.
pub fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if !(low.is_finite() && high.is_finite()) {
        return 0.0..1.0;
    }
    let room = if high > low { 0.08 * (high - low) } else { 0.1 * high.abs().max(1e-3) };
    low - room..high + room
}

/// About five round values inside `ends`.
pub fn ticks(ends: &Range<f64>) -> Vec<f64> {
    let rough = (ends.end - ends.start) / 4.0;
    let power = 10.0_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (ends.start / step).ceil() as i64;
    let last = (ends.end / step).floor() as i64;
    // Rounded where a multiple of a decimal step is not exact.
    (first..=last).map(|index| rounded(index as f64 * step)).collect()
}

/// A number of an axis with its sign, the minus as long as the plus.
pub fn signed(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:+}").replace('-', "\u{2212}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const AXIS: Axis<'static> = Axis { name: "axis", write: &signed };

    fn mark(label: &str, x: f64, value: f64, interval: Option<[f64; 2]>) -> Mark {
        Mark { label: label.to_owned(), x, value, interval, strong: x > 3.0 }
    }

    #[test]
    fn figures_are_drawn_of_whatever_there_is() {
        for marks in [
            vec![mark("a & b", 2.0, 0.1, Some([0.05, 0.2])), mark("c", 4.0, 0.01, None)],
            vec![mark("alone", 4.0, 0.0, None)],
            vec![mark("tiny", 4.0, 3e-9, Some([1e-9, 4e-9]))],
            vec![mark("broken", 4.0, f64::NAN, None)],
            Vec::new(),
        ] {
            let points: Vec<(f64, f64)> =
                marks.iter().map(|m| (m.x, m.value)).filter(|point| point.1.is_finite()).collect();
            let marks: Vec<Mark> = marks.into_iter().filter(|mark| mark.value.is_finite()).collect();
            for svg in [
                forest(&marks, AXIS).unwrap(),
                scatter(&marks, AXIS, AXIS).unwrap(),
                classes(&marks, "across", AXIS).unwrap(),
                cloud(&points, 1.0, AXIS, AXIS).unwrap(),
            ] {
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(!svg.contains("a & b"), "text is escaped");
            }
        }
    }

    #[test]
    fn lines_have_a_legend_where_there_are_several() {
        let points = || vec![mark("", 2.0, 0.3, None), mark("", 8.0, 0.1, Some([0.0, 0.2]))];
        assert!(!lines(&[("first".to_owned(), points())], "samples", AXIS).unwrap().contains("first"));
        let both = [("first".to_owned(), points()), ("second".to_owned(), points())];
        let svg = lines(&both, "samples", AXIS).unwrap();
        assert!(svg.contains("first") && svg.contains("second"));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(&(-0.1..0.35)), [0.0, 0.2]);
        assert_eq!(ticks(&(0.0..4.0)), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(ticks(&(0.0..4e-8)), [0.0, 1e-8, 2e-8, 3e-8, 4e-8]);
        assert_eq!(range([3.0].into_iter()), 2.7..3.3);
    }

    #[test]
    fn a_tick_at_nothing_is_nothing() {
        assert_eq!(on_axis(&(-0.5..0.7), 5.551_115_123e-17), 0.0);
        assert_eq!(on_axis(&(0.0..1e-9), 2e-10), 2e-10);
        let points = [(4.1, -0.41), (4.2, 0.62)];
        assert!(!cloud(&points, 0.0, AXIS, AXIS).unwrap().contains("000000"));
    }

    #[test]
    fn labels_too_long_are_cut() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(50)).chars().count(), LABEL);
    }
}
