//! `tables.svg`: cost over the number of peers, both axes logarithmic, readable on a light and on a
//! dark page.

use std::fmt::Write;

use super::Row;
use super::Series;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;

/// A line: its name, its class, and which numbers of a row it shows.
type Line = (&'static str, &'static str, fn(&Row) -> &Series);

const LINES: [Line; 5] = [
    ("flannel's order", "flannels", |row| &row.flannels),
    ("bare netlink, batched", "bare", |row| &row.batched),
    ("twilld, from nothing", "ours", |row| &row.first),
    ("twilld, restart", "again", |row| &row.restart),
    ("twilld, one peer changed", "one", |row| &row.one_changed),
];

/// The picture for these numbers of peers.
pub(super) fn svg(rows: &[Row]) -> String {
    let peers = || rows.iter().map(|row| row.peers as f64);
    let times = || {
        let lines = LINES.iter().map(|(_, _, of)| of);
        lines.flat_map(|of| rows.iter().map(move |row| of(row).median()))
    };
    let x = Axis::over(peers(), LEFT, WIDTH - RIGHT);
    // Upwards on paper is downwards in SVG.
    let y = Axis::over(times().filter(|ms| *ms > 0.0), HEIGHT - BOTTOM, TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>\n\
         text {{ fill: #1f2328 }} .grid {{ stroke: #d0d7de }} polyline {{ fill: none; stroke-width: 2 }}\n\
         .ours {{ stroke: #0969da }} .again {{ stroke: #1a7f37 }} .one {{ stroke: #8250df }}\n\
         .bare {{ stroke: #8c959f }} .flannels {{ stroke: #cf222e }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .grid {{ stroke: #30363d }} }}\n\
         </style>\n\
         <text x=\"8\" y=\"22\" font-weight=\"bold\">ms over the number of peers</text>\n"
    );
    // Writing to a String cannot fail.
    for decade in y.decades() {
        let at = y.place(decade);
        let (text_y, end) = (at + 4.0, WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.0}\" y=\"{text_y:.1}\" text-anchor=\"end\">{decade}</text>",
            LEFT - 8.0
        );
    }
    for count in peers() {
        let (at, y) = (x.place(count), HEIGHT - BOTTOM + 20.0);
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{count}</text>"
        );
    }
    let mut labels = Labels::default();
    for (name, class, of) in LINES {
        let points: Vec<(f64, f64)> = rows
            .iter()
            .map(|row| (x.place(row.peers as f64), y.place(of(row).median())))
            .collect();
        let list: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            out,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            list.join(" ")
        );
        if let Some((end, at)) = points.last() {
            let at = labels.place(at + 4.0);
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{at:.1}\">{name}</text>",
                end + 8.0
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

/// From the least to the most value, by logarithm.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let least = least.min(most);
        Self {
            least,
            most: most.max(least * 1.01),
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(self.least) / self.least).ln() / (self.most / self.least).ln();
        self.from + (self.to - self.from) * share
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        let (least, most) = (self.least, self.most);
        (-3..7)
            .map(|power| 10f64.powi(power))
            .filter(move |decade| (least..=most).contains(decade))
    }
}

/// Names at the ends of lines, moved apart.
#[derive(Default)]
struct Labels(Vec<f64>);

impl Labels {
    fn place(&mut self, wish: f64) -> f64 {
        let mut at = wish;
        while let Some(near) = self.0.iter().find(|taken| (at - **taken).abs() < 15.0) {
            at = near + 15.0;
        }
        self.0.push(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_every_line_and_names_that_do_not_overlap() {
        let rows = [1_000, 10_000].map(|peers| {
            let mut row = Row {
                peers,
                ..Row::default()
            };
            for series in [&mut row.batched, &mut row.first, &mut row.restart] {
                series.push(peers as f64 / 200.0);
            }
            row
        });
        let text = svg(&rows);
        assert_eq!(text.matches("<polyline").count(), LINES.len());
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        let mut labels = Labels::default();
        assert_eq!(
            [20.0, 21.0, 60.0].map(|y| labels.place(y)),
            [20.0, 35.0, 60.0]
        );
    }
}
