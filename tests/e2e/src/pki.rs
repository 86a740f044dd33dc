//! Certificates, keys and kubeconfigs of a lab's Kubernetes. What is there already stays; nothing here starts a program.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::netns::HOST;

/// Where the API server is for everybody in the lab.
pub const SERVER: &str = "https://10.88.0.1:443";

/// The API server's Service address.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Who gets a kubeconfig besides the nodes: file name, user, group.
const CLIENTS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// The certificate with which the API server calls the kubelets.
const KUBELET_CLIENT: &str = "kubelet-client";

/// A folder of certificates and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// The folder as it is, or will be.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Makes what is missing. Certificates of the lab never run out.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn ensure(&self, nodes: &[(&str, Ipv4Addr)]) -> Result<()> {
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("creating {}", self.dir.display()))?;
        let ca = self.authority()?;
        if !self.file("service-account.pub").exists() {
            let key = KeyPair::generate().context("making a key")?;
            self.write("service-account.key", &key.serialize_pem())?;
            self.write("service-account.pub", &key.public_key_pem())?;
        }
        self.certificate(&ca, "apiserver", || {
            let names = [
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
            ];
            let mut parameters = subject("kube-apiserver", "");
            for name in names {
                parameters.subject_alt_names.push(SanType::DnsName(name.try_into()?));
            }
            for address in [Ipv4Addr::LOCALHOST, SERVICE, HOST] {
                parameters.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(address)));
            }
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            Ok(parameters)
        })?;
        self.client(&ca, KUBELET_CLIENT, "kube-apiserver-kubelet-client", "system:masters")?;
        for (name, user, group) in CLIENTS {
            self.client(&ca, name, user, group)?;
            self.write_kubeconfig(name)?;
        }
        for (node, address) in nodes {
            self.certificate(&ca, node, || {
                let mut parameters = subject(&format!("system:node:{node}"), "system:nodes");
                parameters.subject_alt_names = vec![
                    SanType::DnsName((*node).try_into()?),
                    SanType::IpAddress(IpAddr::V4(*address)),
                ];
                parameters.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
                Ok(parameters)
            })?;
            self.write_kubeconfig(node)?;
        }
        Ok(())
    }

    /// The kubeconfig of `admin`, `controller-manager`, `scheduler`, `kube-proxy` or a node.
    #[must_use]
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.kubeconfig"))
    }

    /// A file of the folder: `ca.crt`, `apiserver.key`, `service-account.pub` and so on.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Certificate and key with which the API server calls the kubelets.
    #[must_use]
    pub fn kubelet_client(&self) -> (PathBuf, PathBuf) {
        (self.file(&format!("{KUBELET_CLIENT}.crt")), self.file(&format!("{KUBELET_CLIENT}.key")))
    }

    /// The authority, which signs more certificates when nodes are added.
    fn authority(&self) -> Result<Issuer<'static, KeyPair>> {
        let mut parameters = subject("cinderblock-lab", "");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let file = self.file("ca.key");
        if self.file("ca.crt").exists() {
            let pem =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let key = KeyPair::from_pem(&pem)
                .with_context(|| format!("{} is damaged", file.display()))?;
            return Ok(Issuer::new(parameters, key));
        }
        let key = KeyPair::generate().context("making a key")?;
        let certificate = parameters.self_signed(&key).context("signing the authority")?;
        self.write("ca.key", &key.serialize_pem())?;
        self.write("ca.crt", &certificate.pem())?;
        Ok(Issuer::new(parameters, key))
    }

    fn client(&self, ca: &Issuer<'_, KeyPair>, name: &str, user: &str, group: &str) -> Result<()> {
        self.certificate(ca, name, || {
            let mut parameters = subject(user, group);
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            Ok(parameters)
        })
    }

    fn certificate(
        &self,
        ca: &Issuer<'_, KeyPair>,
        name: &str,
        parameters: impl FnOnce() -> Result<CertificateParams>,
    ) -> Result<()> {
        let file = format!("{name}.crt");
        if self.file(&file).exists() {
            return Ok(());
        }
        let sign = || -> Result<(KeyPair, rcgen::Certificate)> {
            let key = KeyPair::generate()?;
            let mut parameters = parameters()?;
            parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            parameters.use_authority_key_identifier_extension = true;
            let certificate = parameters.signed_by(&key, ca)?;
            Ok((key, certificate))
        };
        let (key, certificate) = sign().with_context(|| format!("signing {file}"))?;
        self.write(&format!("{name}.key"), &key.serialize_pem())?;
        self.write(&file, &certificate.pem())
    }

    /// Paths in it count from its own folder.
    fn write_kubeconfig(&self, name: &str) -> Result<()> {
        if self.kubeconfig(name).exists() {
            return Ok(());
        }
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "lab",
                "cluster": { "server": SERVER, "certificate-authority": "ca.crt" },
            }],
            "users": [{
                "name": name,
                "user": {
                    "client-certificate": format!("{name}.crt"),
                    "client-key": format!("{name}.key"),
                },
            }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": name } }],
            "current-context": "lab",
        });
        let text = serde_json::to_string_pretty(&config).context("a kubeconfig")?;
        self.write(&format!("{name}.kubeconfig"), &text)
    }

    /// For the owner alone, and whole once it has its name.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (file, partial) = (self.file(name), self.file(&format!("{name}.partial")));
        let write = || -> std::io::Result<()> {
            if partial.exists() {
                fs::remove_file(&partial)?;
            }
            let mut options = fs::OpenOptions::new();
            let mut open = options.write(true).create_new(true).mode(0o600).open(&partial)?;
            std::io::Write::write_all(&mut open, text.as_bytes())?;
            fs::rename(&partial, &file)
        };
        write().with_context(|| format!("writing {}", file.display()))
    }
}

fn subject(user: &str, group: &str) -> CertificateParams {
    let mut name = DistinguishedName::new();
    if !group.is_empty() {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = name;
    parameters
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|it| (it.file_name().into_string().unwrap(), fs::read(it.path()).unwrap()))
            .collect()
    }

    #[test]
    fn all_files_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::at(&folder.path().join("pki"));
        pki.ensure(&[("node1", Ipv4Addr::new(10, 88, 0, 11))]).unwrap();
        let first = contents(&folder.path().join("pki"));
        for name in [
            "ca.crt",
            "service-account.pub",
            "apiserver.key",
            "kubelet-client.crt",
            "admin.kubeconfig",
            "node1.crt",
            "node1.kubeconfig",
        ] {
            assert!(first.contains_key(name), "{name}");
            let mode = pki.file(name).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let second = [("node1", Ipv4Addr::new(10, 88, 0, 11)), ("b", Ipv4Addr::new(10, 88, 0, 12))];
        pki.ensure(&second).unwrap();
        let mut again = contents(&folder.path().join("pki"));
        assert!(again.contains_key("b.kubeconfig") && again.len() == first.len() + 3);
        again.retain(|name, _| first.contains_key(name));
        assert!(again == first, "what was there has changed");
    }

    #[test]
    fn a_kubeconfig_names_the_files_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::at(folder.path());
        pki.ensure(&[]).unwrap();
        let text = fs::read(pki.kubeconfig("scheduler")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["users"][0]["user"]["client-key"], "scheduler.key");
        assert_eq!(config["clusters"][0]["cluster"]["server"], SERVER);
    }
}
