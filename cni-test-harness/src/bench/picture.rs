//! Medians as bars (`add-del.svg`, `data.svg`), readable on a light and on a dark page.

use std::fmt::Write;

use super::Outcome;
use super::candidate::TWILL;

const WIDTH: f64 = 760.0;
const LABEL: f64 = 210.0;
const NUMBER: f64 = 90.0;
const ROW: f64 = 24.0;
const HEADING: f64 = 40.0;

/// One group of bars.
pub(super) struct Panel<'a> {
    pub(super) title: &'static str,
    pub(super) bars: Vec<Bar<'a>>,
}

/// One bar: the longest of its group fills the width.
pub(super) struct Bar<'a> {
    pub(super) name: &'a str,
    pub(super) value: f64,
    /// Drawn in the colour that stands out.
    pub(super) ours: bool,
}

/// The picture for these candidates.
pub(super) fn svg(named: &[(&str, Outcome)]) -> String {
    let bars = |value: fn(&Outcome) -> f64| {
        named
            .iter()
            .map(|(name, outcome)| Bar {
                name,
                value: value(outcome),
                ours: *name == TWILL,
            })
            .collect::<Vec<_>>()
    };
    let panels = [
        Panel {
            title: "ADD, one at a time: median, ms",
            bars: bars(|o| o.add.wall.median()),
        },
        Panel {
            title: "ADD, many at once: per pod, ms",
            bars: bars(|o| o.add.per_pod.median()),
        },
        Panel {
            title: "ADD: user and system time, ms",
            bars: bars(|o| o.add.cpu.median()),
        },
        Panel {
            title: "DEL, one at a time: median, ms",
            bars: bars(|o| o.del.wall.median()),
        },
        Panel {
            title: "Peak memory of a process, MiB",
            bars: bars(|o| o.peak_kib as f64 / 1024.0),
        },
    ];
    draw(&panels)
}

/// One group below the other.
pub(super) fn draw(panels: &[Panel<'_>]) -> String {
    let height: f64 = panels
        .iter()
        .map(|panel| HEADING + ROW * panel.bars.len() as f64)
        .sum::<f64>()
        + 12.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>\n\
         text {{ fill: #1f2328 }} .other {{ fill: #8c959f }} .ours {{ fill: #0969da }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         text {{ fill: #e6edf3 }} .other {{ fill: #6e7681 }} .ours {{ fill: #58a6ff }}\n\
         }}\n\
         </style>\n"
    );
    let mut y = 0.0;
    for panel in panels {
        panel.draw(y, &mut out);
        y += HEADING + ROW * panel.bars.len() as f64;
    }
    out.push_str("</svg>\n");
    out
}

impl Panel<'_> {
    fn draw(&self, top: f64, out: &mut String) {
        let most = self
            .bars
            .iter()
            .map(|bar| bar.value)
            .fold(f64::MIN_POSITIVE, f64::max);
        let title = self.title;
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!(
            "<text x=\"8\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>",
            top + 26.0
        ));
        for (row, Bar { name, value, ours }) in self.bars.iter().enumerate() {
            let y = top + HEADING + ROW * row as f64;
            let length = (WIDTH - LABEL - NUMBER) * value / most;
            let class = if *ours { "ours" } else { "other" };
            let name = name.replace('&', "&amp;").replace('<', "&lt;");
            let (text_y, end) = (y + 13.0, LABEL + length + 6.0);
            line(format!(
                "<text x=\"{}\" y=\"{text_y:.0}\" text-anchor=\"end\">{name}</text>",
                LABEL - 8.0
            ));
            line(format!(
                "<rect class=\"{class}\" x=\"{LABEL}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"16\" rx=\"2\"/>"
            ));
            line(format!(
                "<text x=\"{end:.1}\" y=\"{text_y:.0}\">{value:.2}</text>"
            ));
        }
    }
}
