//! Wrong configuration: every program says which key, with status 64, before it touches a port.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::Duration,
};

use garrison_testkit::bootstrap::{Place, Plan, SERVICES, TRUST_DOMAIN, Written};

use crate::{
    place::{binaries, folder},
    program::{LOCALHOST, output, programs},
    world,
};

/// Configuration files of a fleet that never runs, and its ports, which we hold ourselves: a program that came as far
/// as opening one would fail there with another status.
struct Files {
    written: Written,
    _held: Vec<TcpListener>,
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = folder("configuration");
        let options = world::options(&dir, true);
        let mut held = Vec::new();
        let mut port = || {
            let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            held.push(listener);
            address
        };
        let places = SERVICES.iter().chain(&["enforcer"]).map(|program| {
            let place = Place {
                grpc: port(),
                admin: port(),
                host: "localhost".to_owned(),
            };
            ((*program).to_owned(), place)
        });
        let places = places.collect();
        let mut extra = options.extra;
        extra.insert("flow-ingest".to_owned(), world::sensors(&dir));
        let plan = Plan {
            seen_as: dir.clone(),
            data: dir.join("data"),
            dir: dir.clone(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            bus_url: "tls://127.0.0.1:9".to_owned(),
            database: ("localhost".to_owned(), 9),
            places,
            tenants: options.tenants,
            sensors: Vec::new(),
            enforcer: options.enforcer,
            otlp_endpoint: None,
            log: "info".to_owned(),
            learn_seconds: None,
            extra,
        };
        Files {
            written: plan.write().unwrap(),
            _held: held,
        }
    })
}

fn start(program: &str, arguments: &[&str], config: &Path) -> Output {
    let mut command = Command::new(binaries().join(program));
    command.arg("--config").arg(config).args(arguments);
    output(command, Duration::from_secs(120))
}

fn with_text(program: &str, case: usize, text: &str) -> PathBuf {
    let original = &files().written.config[program];
    let path = original.with_file_name(format!("{program}-{case}.toml"));
    std::fs::write(&path, text).unwrap();
    path
}

fn text(program: &str) -> String {
    std::fs::read_to_string(&files().written.config[program]).unwrap()
}

/// Status 64, and the message says all of this.
fn assert_refused(program: &str, what: &str, output: &Output, says: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{program}, {what}: {said}");
    for word in says {
        assert!(said.contains(word), "{program}, {what}: {word:?} is not in: {said}");
    }
}

#[test]
fn a_good_file_is_taken_and_only_then_a_port_is_opened() {
    for program in programs() {
        let config = &files().written.config[program];
        let checked = start(program, &["check"], config);
        assert!(
            checked.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
        // The ports are held by this test: it comes as far as that, and fails otherwise than for configuration.
        if program != "enforcer" {
            let run = start(program, &[], config);
            let said = String::from_utf8_lossy(&run.stderr);
            assert_eq!(run.status.code(), Some(1), "{program}: {said}");
            assert!(said.contains("GAR-SVC-0001"), "{program}: {said}");
        }
    }
}

#[test]
fn a_missing_or_unreadable_file_is_named() {
    for program in programs() {
        let nowhere = Path::new("/nowhere/at/all.toml");
        assert_refused(
            program,
            "no file",
            &start(program, &[], nowhere),
            &["GAR-CFG-0001", "/nowhere/at/all.toml", "--config"],
        );
        let config = with_text(program, 0, "[core.identity\ntrust_domain = 3\n");
        assert_refused(
            program,
            "no TOML",
            &start(program, &[], &config),
            &["GAR-CFG-0002", "line 1"],
        );
        let config = with_text(program, 1, "");
        assert_refused(
            program,
            "an empty file",
            &start(program, &[], &config),
            &["GAR-CFG-0003"],
        );
    }
}

#[test]
fn each_key_that_is_missing_wrong_or_unknown_is_named() {
    for program in programs() {
        let good = text(program);
        let mut section = String::new();
        let mut required = 0;
        for (number, line) in good.lines().enumerate() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_matches(['[', ']']).to_owned();
                continue;
            }
            let Some((key, value)) = line.split_once(" = ") else {
                continue;
            };
            let key = key.trim_matches('"');
            let with = |replacement: &str| {
                let lines = good.lines().enumerate();
                let lines = lines.map(|(at, kept)| if at == number { replacement } else { kept });
                lines.collect::<Vec<_>>().join("\n")
            };
            // Without it: either it can do without, or it says what is missing.
            let config = with_text(program, number * 3 + 10, &with(""));
            let missing = start(program, &["check"], &config);
            if !missing.status.success() {
                assert_refused(program, &format!("{section}.{key} missing"), &missing, &[key]);
                required += 1;
            }
            // Of a type that no key of this shape has.
            let wrong = if value.starts_with(['"', '[']) {
                "{ a = 1 }"
            } else {
                "\"no such value\""
            };
            let config = with_text(program, number * 3 + 11, &with(&format!("{:?} = {wrong}", key)));
            let output = start(program, &["check"], &config);
            assert_refused(
                program,
                &format!("{section}.{key} = {wrong}"),
                &output,
                &[key, "GAR-CFG-000"],
            );
            // Beside it: one that nobody knows.
            let config = with_text(program, number * 3 + 12, &with(&format!("{line}\nno_such_key = 1")));
            let output = start(program, &["check"], &config);
            let free_form = section.starts_with("enforcement.nodes");
            assert_refused(
                program,
                &format!("{section}.no_such_key"),
                &output,
                if free_form {
                    &["GAR-CFG-000"]
                } else {
                    &["GAR-CFG-0003", "no_such_key"]
                },
            );
        }
        assert!(required >= 6, "{program} needs only {required} keys");
    }
}

#[test]
fn what_a_program_runs_into_before_its_ports_is_named_too() {
    // Not `check`: the program itself, whose ports this test holds.
    let cases: [(&str, &str, &str); 9] = [
        ("iam", "[secrets]", "key_file"),
        ("forensics", "[evidence]", "key_file"),
        ("compliance", "[log]", "key_file"),
        ("responder", "[core.database]", "password_file"),
        ("policy", "[core.identity]", "cert_file"),
        ("anomaly", "[core.identity]", "key_file"),
        ("flow-ingest", "[core.bus]", "ca_file"),
        ("enforcer", "[core.identity]", "ca_file"),
        ("enforcer", "[core.bus]", "cert_file"),
    ];
    for (number, (program, section, key)) in cases.into_iter().enumerate() {
        let good = text(program);
        let (before, after) = good.split_once(section).unwrap();
        let mut replaced = false;
        let lines = after.lines().map(|line| match line.split_once(" = ") {
            Some((name, _)) if name == key && !replaced => {
                replaced = true;
                format!("{key} = \"/nowhere/at/all\"")
            }
            _ => line.to_owned(),
        });
        let after = lines.collect::<Vec<_>>().join("\n");
        let config = with_text(program, 1_000 + number, &format!("{before}{section}{after}"));
        let output = start(program, &[], &config);
        let path = section.trim_matches(['[', ']']);
        let named = path.split('.').next_back().unwrap();
        assert_refused(
            program,
            &format!("{path}.{key} leads nowhere"),
            &output,
            &["/nowhere/at/all", named],
        );
    }
    // A certificate of another service.
    let good = text("responder");
    let config = with_text("responder", 1_100, &good.replace("svc-responder", "svc-policy"));
    let policy = files().written.pki.join("svc-policy.pem");
    assert!(policy.exists());
    let output = start("responder", &[], &config);
    assert_refused(
        "responder",
        "another's certificate",
        &output,
        &["core.identity.cert_file", "policy"],
    );
}
