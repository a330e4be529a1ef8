use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use rustix::process::Signal;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{Pki, Process, ProcessError, Secrets, free_port, process::prepare};

/// Finds the newest installed PostgreSQL server: on PATH, or where Debian puts it.
///
/// # Errors
/// [`ProcessError::Missing`] with the command that installs it.
pub fn find_postgres() -> Result<PathBuf, ProcessError> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").exists().then_some((version, bin))
        })
        .collect();
    versions.sort();
    let on_path = std::env::var_os("PATH").and_then(|paths| {
        std::env::split_paths(&paths).find(|dir| dir.join("initdb").exists() && dir.join("postgres").exists())
    });
    versions
        .pop()
        .map(|(_, bin)| bin)
        .or(on_path)
        .ok_or(ProcessError::Missing {
            program: "PostgreSQL",
            remedy: "run `cargo xtask setup`, or install the package postgresql",
        })
}

/// A private PostgreSQL server on a loopback port, with TLS and passwords.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    bin: PathBuf,
    address: SocketAddrV4,
    ca_file: PathBuf,
    secrets: Secrets,
    process: Mutex<Option<Process>>,
}

impl Postgres {
    /// Starts the server whose data is in `dir`, making the data when there is none.
    ///
    /// # Errors
    /// When PostgreSQL is missing, or does not start; the error holds the end of its log.
    pub fn start(dir: &Path, pki: &Pki) -> Result<Self, ProcessError> {
        let port = free_port().map_err(|source| prepare(dir, source))?;
        Self::start_on(dir, pki, Ipv4Addr::LOCALHOST, port)
    }

    /// The same on an address and port of one's choice, reachable from every network that reaches them.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(dir: &Path, pki: &Pki, address: Ipv4Addr, port: u16) -> Result<Self, ProcessError> {
        let bin = find_postgres()?;
        fs::create_dir_all(dir).map_err(|source| prepare(dir, source))?;
        // A relative folder would mean another place to the server than to us.
        let dir = dir.canonicalize().map_err(|source| prepare(dir, source))?;
        let secrets = Secrets::open_or_create(&dir.join("secrets"))?;
        if !dir.join("data/PG_VERSION").exists() {
            Self::initialise(&bin, &dir, &secrets)?;
        }
        let files = pki.identity("svc/postgres")?;
        let server = Self {
            dir,
            bin,
            address: SocketAddrV4::new(address, port),
            ca_file: files.ca_file.clone(),
            secrets,
            process: Mutex::new(None),
        };
        let absolute = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let settings = format!(
            "listen_addresses = '{address}'\nunix_socket_directories = ''\nport = {port}\nmax_connections = 200\n\
             shared_buffers = 32MB\nssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'\n\
             password_encryption = scram-sha-256\nmax_wal_size = 256MB\nlogging_collector = off\n\
             log_min_messages = warning\ntimezone = UTC\n",
            absolute(&files.cert_file).display(),
            absolute(&files.key_file).display(),
            absolute(&files.ca_file).display(),
        );
        let conf = server.dir.join("data/postgresql.auto.conf");
        fs::write(&conf, settings).map_err(|source| prepare(&conf, source))?;
        let hba = server.dir.join("data/pg_hba.conf");
        fs::write(&hba, "hostssl all all 0.0.0.0/0 scram-sha-256\n").map_err(|source| prepare(&hba, source))?;
        server.resume()?;
        Ok(server)
    }

    fn initialise(bin: &Path, dir: &Path, secrets: &Secrets) -> Result<(), ProcessError> {
        let data = dir.join("data");
        if data.exists() {
            fs::remove_dir_all(&data).map_err(|source| prepare(&data, source))?;
        }
        let password_file = secrets.password("postgres")?;
        let mut command = unprivileged(&bin.join("initdb"));
        command
            .arg("--pgdata")
            .arg(&data)
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ])
            .args(["--no-sync", "--no-instructions"])
            .arg(format!("--pwfile={}", password_file.display()));
        let output = command.output().map_err(|source| ProcessError::Start {
            name: "initdb".to_owned(),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        Err(ProcessError::NotReady {
            name: "initdb".to_owned(),
            problem: format!("ended with {}", output.status),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn resume(&self) -> Result<(), ProcessError> {
        // A pid file left by a crash names a process id that may belong to somebody else by now.
        let _ = fs::remove_file(self.dir.join("data/postmaster.pid"));
        let mut command = unprivileged(&self.bin.join("postgres"));
        command.arg("-D").arg(self.dir.join("data"));
        let mut process = Process::start("postgres", command, &self.dir.join("postgres.log"))?;
        let address = self.address;
        process.wait_until(Duration::from_secs(120), || accepts_queries(address))?;
        *self.process.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    /// Stops the server as an operator would (fast shutdown).
    pub fn stop(&self) {
        if let Some(mut process) = self.process.lock().expect("no holder panics").take() {
            process.end(Signal::INT, Duration::from_secs(60));
        }
    }

    /// Stops the server as a crash would: SIGQUIT makes every backend leave without a checkpoint.
    pub fn kill(&self) {
        if let Some(mut process) = self.process.lock().expect("no holder panics").take() {
            process.end(Signal::QUIT, Duration::from_secs(60));
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The certificate authority to verify the server by.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// The folder of this server.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Connects as superuser.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn superuser(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let file = self
            .secrets
            .password("postgres")
            .map_err(|error| sqlx::Error::Configuration(error.into()))?;
        let password = fs::read_to_string(file)?;
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.address.ip().to_string())
            .port(self.address.port())
            .username("postgres")
            .password(&password)
            .database(database)
            .ssl_mode(PgSslMode::VerifyFull)
            .ssl_root_cert(&self.ca_file);
        PgConnection::connect_with(&options).await
    }

    /// Makes a role that can log in and no more, with a password of this server's own secrets, whose file is
    /// returned.
    ///
    /// # Errors
    /// When the server refuses or the file cannot be written.
    pub async fn create_role(&self, role: &str) -> Result<PathBuf, Box<dyn std::error::Error + Send + Sync>> {
        let file = self.secrets.password(role)?;
        self.adopt_role(role, &file).await?;
        Ok(file)
    }

    /// Makes a role that can log in and no more with the password in a file, or gives an existing one that
    /// password.
    ///
    /// # Errors
    /// When the server refuses or the file cannot be read.
    pub async fn adopt_role(
        &self,
        role: &str,
        password_file: &Path,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let password = fs::read_to_string(password_file)?;
        if !password.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err("a password must be letters and digits here, as DDL takes no parameters".into());
        }
        let mut connection = self.superuser("postgres").await?;
        let known: Option<i32> = sqlx::query_scalar("select 1 from pg_roles where rolname = $1")
            .bind(role)
            .fetch_optional(&mut connection)
            .await?;
        let verb = if known.is_some() { "alter" } else { "create" };
        let statement = format!(
            "{verb} role {} login nosuperuser nocreatedb nocreaterole nobypassrls password '{password}'",
            quoted(role)
        );
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(())
    }

    /// Lets a role make schemas in a database.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn grant_create(&self, database: &str, role: &str) -> Result<(), sqlx::Error> {
        let mut connection = self.superuser("postgres").await?;
        let statement = format!("grant create on database {} to {}", quoted(database), quoted(role));
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(())
    }

    /// Makes a database owned by `owner`, unless it exists, that `guests` and nobody else may connect to.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create_database(&self, name: &str, owner: &str, guests: &[&str]) -> Result<(), sqlx::Error> {
        let mut connection = self.superuser("postgres").await?;
        let known: Option<i32> = sqlx::query_scalar("select 1 from pg_database where datname = $1")
            .bind(name)
            .fetch_optional(&mut connection)
            .await?;
        if known.is_none() {
            let statement = format!("create database {} owner {}", quoted(name), quoted(owner));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
            let statement = format!("revoke all on database {} from public", quoted(name));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        for guest in guests {
            let statement = format!("grant connect on database {} to {}", quoted(name), quoted(guest));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

// PostgreSQL refuses to run as root. A user namespace in which root is an ordinary user satisfies it and
// needs no other account, nor a folder that another account may enter.
fn unprivileged(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command
        .args([
            "--user",
            "--map-user=1000",
            "--map-group=1000",
            "--",
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
        ])
        .arg(program);
    command
}

// A startup packet is answered with an error in any case here: with SQLSTATE 57P03 while the server starts up or
// shuts down, with another once it takes queries. 08P01 would be about the packet and say nothing about the server.
fn accepts_queries(address: SocketAddrV4) -> bool {
    use std::io::{Read as _, Write as _};
    let probe = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(&startup_packet("probe"))?;
        let mut answer = [0; 512];
        let read = stream.read(&mut answer)?;
        let says = |state: &[u8]| answer[..read].windows(state.len()).any(|window| window == state);
        Ok(read > 0 && !says(b"57P03") && !says(b"08P01"))
    };
    probe().unwrap_or(false)
}

// Protocol 3.0: the length with itself, the version, names and values, and one terminator.
fn startup_packet(user: &str) -> Vec<u8> {
    let body = format!("user\0{user}\0\0");
    let length = 8 + body.len() as u32;
    [&length.to_be_bytes(), &[0, 3, 0, 0], body.as_bytes()].concat()
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
