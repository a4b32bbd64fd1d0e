//! Authorities as people make them: by openssl, a root and one below it that signs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use osier_pilot::ca::authority::{Authority, Material};

/// A root and an authority below it, as files of openssl's.
pub struct Family {
    folder: PathBuf,
    /// What its files begin with, and what it is called in certificates.
    pub name: &'static str,
}

impl Family {
    /// Makes one in `folder`.
    pub fn make(folder: &Path, name: &'static str) -> Self {
        let family = Self { folder: folder.to_owned(), name };
        let subject = format!("/O={name}");
        family.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj {subject} -keyout {name}-root.key \
             -out {name}-root.crt -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign"
        ));
        family.openssl(&format!(
            "req -new -newkey rsa:2048 -nodes -subj {subject}-signs -keyout {name}.key -out {name}.csr"
        ));
        fs::write(
            family.path("ext"),
            "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n",
        )
        .expect("the test's folder can be written");
        family.openssl(&format!(
            "x509 -req -in {name}.csr -CA {name}-root.crt -CAkey {name}-root.key -CAcreateserial -days 20 -out {name}.crt \
             -extfile ext"
        ));
        family
    }

    /// Runs openssl in the folder; what it prints.
    pub fn openssl(&self, arguments: &str) -> String {
        let mut command = Command::new("openssl");
        let done = command.args(arguments.split_whitespace()).current_dir(&self.folder).output();
        let done = done.expect("openssl is there");
        assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What a file of the family says: `.crt` and `.key` of the authority, `-root.crt` and `-root.key` of the root.
    pub fn text(&self, ending: &str) -> String {
        fs::read_to_string(self.path(&format!("{}{ending}", self.name))).expect("a file of openssl's")
    }

    /// The root certificate.
    pub fn root(&self) -> String {
        self.text("-root.crt")
    }

    /// SHA-256 of the root, as openssl says it, in lower-case hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        self.fingerprint_of(&format!("{}-root.crt", self.name))
    }

    /// The same of any certificate in the folder.
    pub fn fingerprint_of(&self, file: &str) -> String {
        let said = self.openssl(&format!("x509 -in {file} -noout -fingerprint -sha256"));
        let (_, digits) = said.split_once('=').expect("a fingerprint");
        digits.trim().replace(':', "").to_lowercase()
    }

    /// Signs as this authority does, where these are the roots.
    pub fn authority(&self, roots: &str) -> Authority {
        let (certificate, key) = (self.text(".crt"), self.text(".key"));
        let material = Material { certificate, key, chain: String::new(), roots: roots.into() };
        Authority::of(&material).expect("an authority")
    }

    /// Certificate, chain and key of `spiffe`, with so many authorities between it and the root.
    pub fn deep(&self, between: usize, spiffe: &str) -> [PathBuf; 3] {
        let name = self.name;
        let write = |file: &str, text: &str| {
            fs::write(self.path(file), text).expect("the test's folder can be written");
        };
        write("authority", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n");
        write(
            "leaf",
            &format!("subjectAltName=critical,URI:{spiffe}\nextendedKeyUsage=clientAuth,serverAuth\n"),
        );
        let (mut above, mut chain) = (format!("{name}-root"), String::new());
        for level in 0..=between {
            let (own, extensions) =
                (format!("{name}-{between}-{level}"), if level == between { "leaf" } else { "authority" });
            self.openssl(&format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O={own} -keyout {own}.key -out {own}.csr"
            ));
            self.openssl(&format!(
                "x509 -req -in {own}.csr -CA {above}.crt -CAkey {above}.key -CAcreateserial -days 1 -out {own}.crt -extfile {extensions}"
            ));
            if level < between {
                let certificate =
                    fs::read_to_string(self.path(&format!("{own}.crt"))).expect("a certificate");
                chain.insert_str(0, &certificate);
            }
            above = own;
        }
        write("chain", &chain);
        [self.path(&format!("{above}.crt")), self.path("chain"), self.path(&format!("{above}.key"))]
    }
}
