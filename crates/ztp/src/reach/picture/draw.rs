//! Where everything stands, and the file. All coordinates are whole pixels, so that every machine writes the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    graph::{Group, Line, Section},
    text::{cells, ends, escaped, pixels, start},
};
use crate::reach::Side;

const MARGIN: usize = 24;
/// Height of a row, and of a box's head.
const ROW: usize = 22;
/// Between boxes.
const BETWEEN: usize = 14;
/// Between a box's edge and its text.
const INSIDE: usize = 12;
/// Cells of a name, of a box's title, and of protocols and ports.
const NAME: usize = 56;
const SERVICES: usize = 52;
/// What a line from or to a whole box is about.
const EACH: &str = "each of these";

/// Lines take the colour of the box that they come from.
const COLOURS: [&str; 10] = [
    "#1f5fa8", "#b3441e", "#2e7d4f", "#7a4fa3", "#8a6100", "#00737c", "#ad2a6c", "#4d5a66", "#6b7a00", "#8c3b3b",
];

const STYLE: &str = "text{font:12px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#1b2530;white-space:pre}\
.title{font-weight:bold}.quiet{fill:#687480}.head{font-size:15px;font-weight:bold}\
.box{fill:#f7f9fb;stroke:#c3ccd5}\
path{fill:none;stroke-width:1.3;stroke-opacity:.75}path.whole{stroke-width:3.2}path:hover{stroke-width:5;stroke-opacity:1}";

/// One row of a box.
struct Row<'c> {
    /// The member whose name it has.
    side: Option<&'c Side>,
    /// Whether it is about each of them.
    each: bool,
    /// The place of the target that a line to it has.
    target: Option<usize>,
}

/// A column of boxes, each with its rows.
struct Column<'c> {
    boxes: Vec<(usize, &'c Group<'c>, Vec<Row<'c>>)>,
}

impl Column<'_> {
    fn height(&self) -> usize {
        let rows: usize = self.boxes.iter().map(|(.., rows)| rows.len() + 1).sum();
        rows * ROW + self.boxes.len().saturating_sub(1) * BETWEEN + self.boxes.len() * INSIDE / 2
    }

    /// The middle of each row, box by box, when the first box begins at `top`; and where each box begins.
    fn middles(&self, top: usize) -> (Vec<usize>, Vec<Vec<usize>>) {
        let (mut at, mut tops, mut middles) = (top, Vec::new(), Vec::new());
        for (.., rows) in &self.boxes {
            tops.push(at);
            middles.push((1..=rows.len()).map(|row| at + row * ROW + ROW / 2).collect());
            at += (rows.len() + 1) * ROW + INSIDE / 2 + BETWEEN;
        }
        (tops, middles)
    }
}

/// How a member is called in its box, and what is said of it in grey.
fn name(side: &Side) -> (String, &str) {
    match side {
        Side::Workload { name, kind, .. } => (ends(name, NAME), kind),
        Side::Node(name) | Side::Domain(name) => (ends(name, NAME), ""),
        Side::IngressController => ("ingress controller".to_owned(), ""),
        Side::External(..) => (start(&side.to_string(), NAME), ""),
    }
}

fn shown(side: &Side) -> usize {
    let (name, kind) = name(side);
    cells(&name)
        + if kind.is_empty() {
            0
        } else {
            1 + cells(&start(kind, NAME / 2))
        }
}

/// The column of destinations: of each member the rows of its targets.
fn destinations<'c>(section: &'c Section<'c>) -> Column<'c> {
    let mut of: BTreeMap<(usize, Option<usize>), Vec<usize>> = BTreeMap::new();
    for (i, target) in section.targets.iter().enumerate() {
        of.entry((target.group, target.member)).or_default().push(i);
    }
    let boxes = section.destinations.iter().enumerate().map(|(g, group)| {
        let mut rows = Vec::new();
        for target in of.get(&(g, None)).into_iter().flatten() {
            rows.push(Row {
                side: None,
                each: true,
                target: Some(*target),
            });
        }
        for (m, side) in group.members.iter().enumerate() {
            let own = of.get(&(g, Some(m))).map(Vec::as_slice).unwrap_or_default();
            let mut targets = own
                .iter()
                .map(|target| Some(*target))
                .chain(own.is_empty().then_some(None));
            rows.push(Row {
                side: Some(side),
                each: false,
                target: targets.next().flatten(),
            });
            rows.extend(targets.map(|target| Row {
                side: None,
                each: false,
                target,
            }));
        }
        (g, group, rows)
    });
    Column { boxes: boxes.collect() }
}

/// The column of sources: boxes, and members in them, by where their lines go, so that few lines cross.
fn sources<'c>(section: &'c Section<'c>, ends_at: &[usize]) -> Column<'c> {
    let mean = |wanted: &dyn Fn(&Line) -> bool| {
        let at: Vec<usize> = section
            .lines
            .iter()
            .filter(|line| wanted(line))
            .filter_map(|line| ends_at.get(line.target).copied())
            .collect();
        at.iter().sum::<usize>().checked_div(at.len())
    };
    let mut boxes: Vec<_> = section
        .sources
        .iter()
        .enumerate()
        .map(|(g, group)| {
            let whole = section
                .lines
                .iter()
                .any(|line| line.group == g && line.member.is_none());
            let mut members: Vec<_> = group.members.iter().enumerate().collect();
            // Those whose lines are all the box's have no place of their own: they stay in their order, at the end.
            members.sort_by_key(|(m, _)| {
                let own = mean(&|line| line.group == g && line.member == Some(*m));
                (own.is_none(), own)
            });
            let each = whole.then_some(Row {
                side: None,
                each: true,
                target: None,
            });
            let named = members.into_iter().map(|(_, side)| Row {
                side: Some(*side),
                each: false,
                target: None,
            });
            (g, group, each.into_iter().chain(named).collect::<Vec<_>>())
        })
        .collect();
    boxes.sort_by_key(|(g, ..)| mean(&|line| line.group == *g));
    Column { boxes }
}

/// Widths of the two columns and of what is between them.
struct Widths {
    left: usize,
    between: usize,
    right: usize,
    /// Where protocols and ports begin, from the left edge of the right column.
    services: usize,
}

fn widths(section: &Section<'_>) -> Widths {
    let heads = |groups: &[Group<'_>]| groups.iter().map(|g| cells(&ends(g.title, NAME))).max().unwrap_or(0);
    let names = |groups: &[Group<'_>]| {
        let members = groups.iter().flat_map(|group| &group.members).map(|side| shown(side));
        members.chain([cells(EACH)]).max().unwrap_or(0)
    };
    let said = section
        .targets
        .iter()
        .map(|target| cells(&start(&target.services.to_string(), SERVICES)));
    let services = pixels(names(&section.destinations)) + 2 * INSIDE;
    let right =
        (services + pixels(said.max().unwrap_or(0))).max(pixels(heads(&section.destinations)) + INSIDE) + INSIDE;
    Widths {
        left: pixels(names(&section.sources).max(heads(&section.sources))) + 2 * INSIDE,
        between: (160 + 3 * section.lines.len()).min(420),
        right,
        services,
    }
}

/// The file.
pub(super) fn draw(sections: &[Section<'_>]) -> String {
    let mut body = String::new();
    let (mut width, mut top) = (640, MARGIN);
    for section in sections {
        let widths = widths(section);
        width = width.max(widths.left + widths.between + widths.right + 2 * MARGIN);
        top = one(section, &widths, top, &mut body) + 2 * BETWEEN;
    }
    let foot = match sections {
        [] => "No connection is possible between the ends that were asked about.",
        _ => {
            "A thick line is about each in a box, and says nothing about one and itself. Replies belong to a connection."
        }
    };
    let _ = writeln!(
        body,
        r#"<text class="quiet" x="{MARGIN}" y="{}">{foot}</text>"#,
        top + ROW / 2
    );
    let (width, height) = (width.max(pixels(cells(foot)) + 2 * MARGIN), top + ROW + MARGIN);
    format!(
        r##"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">
<title>Who can reach whom</title>
<style>{STYLE}</style>
<rect width="{width}" height="{height}" fill="#ffffff"/>
{body}</svg>
"##
    )
}

/// Draws one network from `top` on, and answers with where it ends.
fn one(section: &Section<'_>, widths: &Widths, top: usize, out: &mut String) -> usize {
    let right_at = MARGIN + widths.left + widths.between;
    let mut top = top;
    // Writing to a String cannot fail.
    if !section.network.is_empty() {
        let title = escaped(&ends(section.network, 2 * NAME));
        let _ = writeln!(
            out,
            r#"<text class="head" x="{MARGIN}" y="{}">on network {title}</text>"#,
            top + 14
        );
        top += 2 * ROW;
    }
    for (x, title) in [(MARGIN, "opens connections"), (right_at, "to")] {
        let _ = writeln!(out, r#"<text class="quiet" x="{x}" y="{}">{title}</text>"#, top + 8);
    }
    top += ROW;
    let right = destinations(section);
    // Heights do not depend on the order, so sources can be ordered by where their lines will end.
    let heights = [sources(section, &[]).height(), right.height()];
    let tall = heights[0].max(heights[1]);
    let (tops, middles) = right.middles(top + (tall - heights[1]) / 2);
    let mut ends_at = vec![0; section.targets.len()];
    for ((.., rows), middles) in right.boxes.iter().zip(&middles) {
        for (row, middle) in rows.iter().zip(middles) {
            if let Some(end) = row.target.and_then(|target| ends_at.get_mut(target)) {
                *end = *middle;
            }
        }
    }
    let left = sources(section, &ends_at);
    let (left_tops, left_middles) = left.middles(top + (tall - heights[0]) / 2);
    let mut begins: BTreeMap<(usize, Option<&Side>), usize> = BTreeMap::new();
    for ((g, _, rows), middles) in left.boxes.iter().zip(&left_middles) {
        begins.extend(rows.iter().zip(middles).map(|(row, middle)| ((*g, row.side), *middle)));
    }
    lines(section, &begins, &ends_at, MARGIN + widths.left, right_at, out);
    for (((g, group, rows), top), middles) in left.boxes.iter().zip(left_tops).zip(&left_middles) {
        frame(group, rows.len(), MARGIN, top, widths.left, Some(colour(*g)), out);
        for (row, middle) in rows.iter().zip(middles) {
            label(row, MARGIN + INSIDE, *middle, out);
        }
    }
    for (((_, group, rows), top), middles) in right.boxes.iter().zip(tops).zip(&middles) {
        frame(group, rows.len(), right_at, top, widths.right, None, out);
        for (row, middle) in rows.iter().zip(middles) {
            label(row, right_at + INSIDE, *middle, out);
            if let Some(target) = row.target.and_then(|target| section.targets.get(target)) {
                let whole = target.services.to_string();
                let (x, y) = (right_at + widths.services, middle + 4);
                let _ = writeln!(
                    out,
                    r#"<text x="{x}" y="{y}">{}<title>{}</title></text>"#,
                    escaped(&start(&whole, SERVICES)),
                    escaped(&whole)
                );
            }
        }
    }
    top + tall
}

fn colour(group: usize) -> &'static str {
    COLOURS[group % COLOURS.len()]
}

fn lines(
    section: &Section<'_>,
    begins: &BTreeMap<(usize, Option<&Side>), usize>,
    ends_at: &[usize],
    from: usize,
    to: usize,
    out: &mut String,
) {
    let mut heads = BTreeSet::new();
    for line in &section.lines {
        let (Some(group), Some(target), Some(y)) = (
            section.sources.get(line.group),
            section.targets.get(line.target),
            ends_at.get(line.target),
        ) else {
            continue;
        };
        let source = line.member.and_then(|m| group.members.get(m)).copied();
        let Some(begin) = begins.get(&(line.group, source)) else {
            continue;
        };
        let destinations = section.destinations.get(target.group);
        let destination = target.member.and_then(|m| destinations?.members.get(m)).copied();
        let who = |side: Option<&Side>, group: &str| match side {
            Some(side) => side.to_string(),
            None => format!("each of {group}"),
        };
        let said = format!(
            "{} → {}: {}",
            who(source, group.title),
            who(destination, destinations.map_or("", |group| group.title)),
            target.services
        );
        let colour = colour(line.group);
        let whole = if source.is_none() || destination.is_none() {
            r#" class="whole""#
        } else {
            ""
        };
        // A curve that leaves and arrives level.
        let (near, far, end) = (from + (to - from) / 2, from + (to - from) / 2, to - 7);
        let _ = writeln!(
            out,
            r#"<path{whole} stroke="{colour}" d="M{from} {begin}C{near} {begin} {far} {y} {end} {y}"><title>{}</title></path>"#,
            escaped(&said)
        );
        heads.insert((line.target, *y, colour));
    }
    for (_, y, colour) in heads {
        let (back, above, below) = (to - 9, y - 4, y + 4);
        let _ = writeln!(
            out,
            r#"<polygon fill="{colour}" points="{to},{y} {back},{above} {back},{below}"/>"#
        );
    }
}

/// A box with its title.
fn frame(group: &Group<'_>, rows: usize, x: usize, top: usize, width: usize, colour: Option<&str>, out: &mut String) {
    let height = (rows + 1) * ROW + INSIDE / 2;
    let _ = writeln!(
        out,
        r#"<rect class="box" x="{x}" y="{top}" width="{width}" height="{height}" rx="4"/>"#
    );
    if let Some(colour) = colour {
        let edge = x + width - 4;
        let _ = writeln!(
            out,
            r#"<rect x="{edge}" y="{top}" width="4" height="{height}" fill="{colour}"/>"#
        );
    }
    let _ = writeln!(
        out,
        r#"<text class="title" x="{}" y="{}">{}<title>{}</title></text>"#,
        x + INSIDE,
        top + ROW / 2 + 6,
        escaped(&ends(group.title, NAME)),
        escaped(group.title)
    );
}

/// Whom a row is about.
fn label(row: &Row<'_>, x: usize, middle: usize, out: &mut String) {
    let y = middle + 4;
    if row.each {
        let _ = writeln!(out, r#"<text class="quiet" x="{x}" y="{y}">{EACH}</text>"#);
    }
    if let Some(side) = row.side {
        let (name, kind) = name(side);
        let kind = match kind {
            "" => String::new(),
            kind => format!(r#"<tspan class="quiet"> {}</tspan>"#, escaped(&start(kind, NAME / 2))),
        };
        let _ = writeln!(
            out,
            r#"<text x="{x}" y="{y}">{}{kind}<title>{}</title></text>"#,
            escaped(&name),
            escaped(&side.to_string())
        );
    }
}
