//! Curves as an SVG: both axes logarithmic, so that a line means a power.

use std::fmt::Write as _;

/// One system of axes.
pub struct Panel {
    pub title: &'static str,
    pub x: &'static str,
    pub curves: Vec<Curve>,
}

/// One line.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 7] = ["#999999", "#c77", "#06c", "#093", "#c60", "#639", "#000"];

/// Panels beside each other.
const COLUMNS: usize = 3;

/// All panels, row by row.
pub fn draw(panels: &[Panel]) -> String {
    let mut svg = String::new();
    let width = WIDTH * panels.len().min(COLUMNS) as f64;
    let height = HEIGHT * panels.len().div_ceil(COLUMNS) as f64;
    // Writing into a string cannot fail, here and below.
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>"#
    );
    for (index, panel) in panels.iter().enumerate() {
        let x = WIDTH * (index % COLUMNS) as f64;
        let y = HEIGHT * (index / COLUMNS) as f64;
        let _ = writeln!(svg, r#"<g transform="translate({x},{y})">"#);
        draw_panel(panel, &mut svg);
        svg.push_str("</g>\n");
    }
    svg + "</svg>\n"
}

fn draw_panel(panel: &Panel, svg: &mut String) {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let x = Axis::over(points().map(|point| point.0), MARGIN, WIDTH - 20.0);
    let y = Axis::over(points().map(|point| point.1), HEIGHT - 50.0, 40.0);
    let _ = writeln!(
        svg,
        r#"<text x="{MARGIN}" y="20" font-size="13">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>"#,
        panel.title,
        WIDTH - 20.0,
        HEIGHT - 12.0,
        panel.x
    );
    for (at, label) in x.marks() {
        let _ = writeln!(
            svg,
            r##"<line x1="{at}" x2="{at}" y1="40" y2="{}" stroke="#eee"/><text x="{at}" y="{}" text-anchor="middle">{label}</text>"##,
            HEIGHT - 50.0,
            HEIGHT - 34.0
        );
    }
    for (at, label) in y.marks() {
        let _ = writeln!(
            svg,
            r##"<line x1="{MARGIN}" x2="{}" y1="{at}" y2="{at}" stroke="#eee"/><text x="{}" y="{}" text-anchor="end">{label}</text>"##,
            WIDTH - 20.0,
            MARGIN - 6.0,
            at + 4.0
        );
    }
    for (index, (curve, colour)) in panel.curves.iter().zip(COLOURS).enumerate() {
        let line: Vec<_> =
            curve.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x.at(*a), y.at(*b))).collect();
        let _ = writeln!(
            svg,
            r#"<polyline fill="none" stroke="{colour}" stroke-width="2" points="{}"/><text x="{}" y="{}" fill="{colour}">{}</text>"#,
            line.join(" "),
            MARGIN + 8.0,
            54.0 + 14.0 * index as f64,
            curve.name
        );
    }
}

/// From values to places.
struct Axis {
    /// Powers of ten.
    low: f64,
    high: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, begin: f64, end: f64) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        Self { low: low.log10().floor(), high: high.log10().ceil(), begin, end }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - self.low) / (self.high - self.low).max(1.0);
        self.begin + part * (self.end - self.begin)
    }

    fn marks(&self) -> impl Iterator<Item = (f64, String)> {
        #[expect(clippy::cast_possible_truncation, reason = "small powers of ten")]
        let powers = self.low as i32..=self.high as i32;
        powers.map(|power| {
            let value = 10f64.powi(power);
            (self.at(value), if power < 0 { format!("{value}") } else { format!("{value:.0}") })
        })
    }
}
