//! Versions that wait for somebody else's approval.

use clap::Args;
use garrison_proto::policy::v1::{
    ApprovePolicyRequest, GetPolicyRequest, ListPolicyReviewsRequest, Policy as Stored, RejectPolicyRequest,
};
use serde_json::json;
use tonic::Code;

use super::{Client, fields};
use crate::{
    Context,
    commands::{named, pages},
    error::CliError,
    output::{Printer, time, to_json},
};

/// Hexadecimal digits of a hash that tell a document apart, at least.
const DIGITS: usize = 12;

/// What waits.
#[derive(Args)]
pub struct Review {
    /// Show this one, and what it changes; all that wait are listed when left out
    policy: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 200)]
    limit: usize,
}

/// What is decided, about which document.
#[derive(Args)]
pub struct Decide {
    /// Its name
    policy: String,
    /// SHA-256 of the document that you looked at, as `policy review` shows it: the first twelve digits, or more
    #[arg(long)]
    sha256: String,
    /// Why, for the record
    #[arg(long, default_value = "")]
    reason: String,
}

async fn waiting(client: &mut Client, limit: usize) -> Result<Vec<Stored>, CliError> {
    Ok(pages!(limit, |page_size, page_token| {
        let request = ListPolicyReviewsRequest { page_size, page_token };
        let answer = client.list_policy_reviews(request).await?.into_inner();
        (answer.policies, answer.next_page_token)
    }))
}

async fn of(client: &mut Client, policy: &str) -> Result<Stored, CliError> {
    let name = named("policies", policy);
    let all = waiting(client, usize::MAX).await?;
    let found = all.into_iter().find(|waiting| waiting.name == name);
    found.ok_or_else(|| {
        CliError::Argument(format!(
            "no version of {name} waits; `garrison policy review` lists all"
        ))
    })
}

impl Review {
    /// Lists what waits, or shows one with what it changes.
    pub async fn run(self, client: &mut Client, context: &Context) -> Result<(), CliError> {
        let printer = &context.printer;
        let Some(policy) = &self.policy else {
            let all = waiting(client, self.limit).await?;
            list(printer, &all);
            return Ok(());
        };
        let waits = of(client, policy).await?;
        let request = GetPolicyRequest {
            name: waits.name.clone(),
            version: waits.in_force,
        };
        let before = match waits.in_force {
            0 => None,
            _ => match client.get_policy(request).await {
                Ok(answer) => answer.into_inner().policy,
                Err(status) if status.code() == Code::NotFound => None,
                Err(status) => return Err(status.into()),
            },
        };
        if printer.is_json() {
            printer.json(&json!({ "waiting": to_json(&waits), "inForce": before.as_ref().map(to_json) }));
            return Ok(());
        }
        printer.record(&waits, &fields(&waits));
        println!();
        let old = before.as_ref().map_or("", |before| before.document.as_str());
        for line in changes(old, &waits.document) {
            println!("{line}");
        }
        for diagnostic in garrison_ztp::check(&waits.document).diagnostics {
            eprintln!("{diagnostic}");
        }
        eprintln!(
            "approve it with: garrison policy approve {} --sha256 {}",
            waits.name.trim_start_matches("policies/"),
            waits.sha256.get(..DIGITS).unwrap_or(&waits.sha256)
        );
        Ok(())
    }
}

impl Decide {
    /// Approves or rejects the version that waits, if it is the one that was looked at.
    pub async fn run(self, client: &mut Client, context: &Context, approves: bool) -> Result<(), CliError> {
        let waits = of(client, &self.policy).await?;
        let given = self.sha256.to_ascii_lowercase();
        if given.len() < DIGITS || !waits.sha256.starts_with(&given) {
            return Err(CliError::Argument(format!(
                "the document that waits has the SHA-256 {}, and not {given:?}: look at it with `garrison policy review {}`",
                waits.sha256, self.policy
            )));
        }
        let (name, version, sha256, note) = (waits.name, waits.version, waits.sha256, self.reason);
        let policy = if approves {
            let request = ApprovePolicyRequest {
                name,
                version,
                sha256,
                note,
            };
            client.approve_policy(request).await?.into_inner().policy
        } else {
            let request = RejectPolicyRequest {
                name,
                version,
                sha256,
                note,
            };
            client.reject_policy(request).await?.into_inner().policy
        };
        let policy = policy.ok_or(CliError::Answer("policy", "the policy"))?;
        context.printer.record(&policy, &fields(&policy));
        Ok(())
    }
}

fn list(printer: &Printer, policies: &[Stored]) {
    let headers = ["policy", "version", "in force", "author", "created", "sha256"];
    printer.list("policies", &headers, policies, |policy| {
        vec![
            policy.name.clone(),
            policy.version.to_string(),
            policy.in_force.to_string(),
            policy.author.clone(),
            time(policy.created.as_ref()),
            policy.sha256.clone(),
        ]
    });
}

/// The lines of both texts, those that went with a `-` before them and those that came with a `+`.
fn changes(before: &str, after: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let alike = |a: &[&str], b: &[&str]| a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let end = alike(&old[start..], &new[start..]);
    let (gone, come) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let mut lines: Vec<String> = old[..start].iter().map(|line| format!("  {line}")).collect();
    // The longest common part needs a table of both; texts that share little are told one after the other.
    const CELLS: usize = 4_000_000;
    if gone.len().saturating_mul(come.len()) > CELLS {
        lines.extend(gone.iter().map(|line| format!("- {line}")));
        lines.extend(come.iter().map(|line| format!("+ {line}")));
    } else {
        let width = come.len() + 1;
        let mut common = vec![0u32; (gone.len() + 1) * width];
        for i in (0..gone.len()).rev() {
            for j in (0..come.len()).rev() {
                common[i * width + j] = if gone[i] == come[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < gone.len() || j < come.len() {
            if i < gone.len() && j < come.len() && gone[i] == come[j] {
                lines.push(format!("  {}", gone[i]));
                (i, j) = (i + 1, j + 1);
            } else if j == come.len() || (i < gone.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
                lines.push(format!("- {}", gone[i]));
                i += 1;
            } else {
                lines.push(format!("+ {}", come[j]));
                j += 1;
            }
        }
    }
    lines.extend(old[old.len() - end..].iter().map(|line| format!("  {line}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every text of up to four lines that are `a` or `b`.
    fn texts() -> Vec<Vec<&'static str>> {
        let mut all: Vec<Vec<&str>> = vec![Vec::new()];
        for at in 0..4 {
            let longer = all.iter().filter(|text| text.len() == at);
            let longer: Vec<_> = longer
                .flat_map(|text| ["a", "b"].map(|line| [text.as_slice(), &[line]].concat()))
                .collect();
            all.extend(longer);
        }
        all
    }

    #[test]
    fn both_texts_can_be_read_from_their_changes() {
        for before in texts() {
            for after in texts() {
                let lines = changes(&before.join("\n"), &after.join("\n"));
                let side = |sign: char| -> Vec<&str> {
                    let of = lines.iter().filter(|line| line.starts_with([' ', sign]));
                    of.map(|line| &line[2..]).collect()
                };
                assert_eq!((side('-'), side('+')), (before.clone(), after.clone()));
                assert_eq!(before == after, lines.iter().all(|line| line.starts_with(' ')));
            }
        }
    }
}
