//! The answer as a picture: an SVG file that needs no other program.
//!
//! Whoever opens connections stands at the left and what they reach at the right, in boxes of one namespace each, and a line
//! ends at the protocols and ports that it is about. So no text lies over another, however many lines there are, and the
//! direction needs no looking for. Where each workload of a box does the same, one line from or to the head of the box says
//! so, which keeps a cluster without policies, where everybody reaches everybody, as readable as one with many.
//!
//! Layouts in layers, such as Graphviz makes, show a chain of services better and hundreds of lines worse; [`super::dot`]
//! is for those. The same connections always give the same file.

mod draw;
mod graph;
mod text;

use super::Connection;

/// Most ends in one picture, on either side.
pub const MOST_ENDS: usize = 300;
/// Most lines in one picture.
pub const MOST_LINES: usize = 2_000;

/// Why there is no picture: nobody could read it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the picture would have {count} {what}, and at most {most} can be read")]
pub struct TooLarge {
    /// Of what there is too much.
    pub what: &'static str,
    /// How much there is.
    pub count: usize,
    /// How much is drawn.
    pub most: usize,
}

/// The connections as an SVG file, as [`super::Reach::connections`] gives them.
///
/// Texts are shortened to fit, and are whole in the tooltip. Whatever names hold, the file is well-formed and has no
/// characters that would change how it reads.
///
/// # Errors
/// When there are more than [`MOST_ENDS`] ends on a side, or more than [`MOST_LINES`] lines.
pub fn svg(connections: &[Connection]) -> Result<String, TooLarge> {
    Ok(draw::draw(&graph::sections(connections)?))
}

#[cfg(test)]
mod tests {
    use super::svg;
    use crate::{
        reach::{Connection, Side},
        sets::ServiceSet,
    };

    fn workload(namespace: &str, name: &str) -> Side {
        Side::Workload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kind: "Deployment".to_owned(),
        }
    }

    fn connection(source: Side, destination: Side, ports: std::ops::RangeInclusive<u16>) -> Connection {
        let mut services = ServiceSet::empty();
        for port in ports {
            services.insert(6, port, port);
        }
        Connection {
            network: String::new(),
            source,
            destination,
            services,
        }
    }

    /// Every element is closed by its own name, and nothing else is markup.
    fn well_formed(text: &str) -> usize {
        let mut open = Vec::new();
        let mut elements = 0;
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "{}", &rest[..at]);
            let end = rest[at..].find('>').expect("a tag ends") + at;
            let tag = &rest[at + 1..end];
            assert!(!tag.contains('<'), "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
            } else if !tag.starts_with('?') {
                elements += 1;
                if !tag.ends_with('/') {
                    open.push(tag.split([' ', '\n']).next().unwrap_or_default().to_owned());
                }
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
        elements
    }

    #[test]
    fn a_picture_has_everyone_and_is_the_same_every_time() {
        let connections = [
            connection(workload("shop", "web"), workload("shop", "db"), 5432..=5432),
            connection(workload("bank", "teller"), workload("shop", "web"), 443..=443),
            connection(
                workload("shop", "web"),
                Side::Domain("example.com".to_owned()),
                443..=443,
            ),
            connection(
                Side::External(vec![(0, u32::MAX)], vec![]),
                workload("shop", "web"),
                443..=443,
            ),
        ];
        let picture = svg(&connections).unwrap();
        assert_eq!(picture.matches("<path").count(), 4);
        for said in [
            ">shop<",
            ">bank<",
            ">names in DNS<",
            "example.com",
            "TCP/5432",
            "0.0.0.0/0",
            "shop/web[Deployment]",
        ] {
            assert!(picture.contains(said), "{said}\n{picture}");
        }
        assert!(well_formed(&picture) > 20);
        let mut shuffled = connections.to_vec();
        shuffled.reverse();
        assert_eq!(svg(&shuffled).unwrap(), picture);
    }

    #[test]
    fn names_are_never_markup() {
        let hostile = [
            "</text><script>alert(1)</script>",
            "\"/><image href='http://x/'/>",
            "a&b<!--",
            "]]>\u{0}\u{1b}[31m\u{202e}",
            "",
            &"x".repeat(5_000),
        ];
        let mut connections = Vec::new();
        for name in hostile {
            connections.push(connection(workload(name, name), workload("shop", "web"), 1..=1));
            connections.push(connection(workload("shop", "web"), workload(name, name), 2..=60));
            connections.push(Connection {
                network: name.to_owned(),
                ..connection(Side::Node(name.to_owned()), Side::Domain(name.to_owned()), 3..=3)
            });
        }
        let picture = svg(&connections).unwrap();
        well_formed(&picture);
        assert!(!picture.contains("<script") && !picture.contains("<image") && !picture.contains("<!--"));
        assert!(!picture.contains(['\u{0}', '\u{1b}', '\u{202e}']));
        // What is long is shortened, in its place as in the width of the file.
        let width: usize = picture
            .split("width=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(width < 2_500, "{width}");
    }

    #[test]
    fn no_connection_is_a_picture_too() {
        let picture = svg(&[]).unwrap();
        assert!(picture.contains("No connection is possible"));
        well_formed(&picture);
    }
}
