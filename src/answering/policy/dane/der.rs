//! Whether bytes are a certificate or a public key in DER, as OpenSSL reads a TLSA record of matching type 0.
//!
//! Takes: the data of a record. Gives: yes or no. OpenSSL calls a record that it cannot read unusable, and Postfix then
//! defers mail under `dane-only`: such a record must not count as usable.
//! Limits: the structure, the algorithms that OpenSSL knows and the length of their keys; not whether a point is on its
//! curve, nor any signature.
//! Not here: the other rules for a usable record (`lookup`).

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// `[0]`, the version of a certificate.
const VERSION: u8 = 0xa0;

const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
const RSA_PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";
const DSA: &[u8] = b"\x2a\x86\x48\xce\x38\x04\x01";
const EC: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const ED25519: &[u8] = b"\x2b\x65\x70";
const ED448: &[u8] = b"\x2b\x65\x71";

const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
const P384: &[u8] = b"\x2b\x81\x04\x00\x22";
const P521: &[u8] = b"\x2b\x81\x04\x00\x23";

/// One element: its tag, its content, and all of its bytes.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// Whether it is one certificate (RFC 5280 §4.1) from end to end, with a public key that is one.
pub(super) fn is_certificate(data: &[u8]) -> bool {
    let found = || {
        let [tbs, algorithm, signature] = elements(only(data, SEQUENCE)?)?;
        let signed = tbs.tag == SEQUENCE && algorithm.tag == SEQUENCE && signature.tag == BIT_STRING;
        let mut rest = tbs.content;
        let mut next = || {
            let (element, after) = element(rest)?;
            rest = after;
            Some(element)
        };
        let first = next()?;
        let serial = if first.tag == VERSION { next()? } else { first };
        // Algorithm, issuer, validity, subject.
        let names = [next()?, next()?, next()?, next()?];
        let key = next()?;
        let right = serial.tag == INTEGER && names.iter().all(|element| element.tag == SEQUENCE);
        Some(signed && right && is_public_key(key.whole))
    };
    found().unwrap_or(false)
}

/// Whether it is one SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) from end to end.
pub(super) fn is_public_key(data: &[u8]) -> bool {
    let found = || {
        let [algorithm, key] = elements(only(data, SEQUENCE)?)?;
        let (name, parameters) = element(algorithm.content).filter(|_| algorithm.tag == SEQUENCE)?;
        let key = key.content.strip_prefix(&[0]).filter(|_| key.tag == BIT_STRING && name.tag == OBJECT_IDENTIFIER)?;
        Some(match name.content {
            RSA | RSA_PSS => {
                let [modulus, exponent] = elements(only(key, SEQUENCE)?)?;
                modulus.tag == INTEGER && exponent.tag == INTEGER && !modulus.content.is_empty()
            }
            DSA => !only(key, INTEGER)?.is_empty(),
            EC => is_point(element(parameters)?.0.content, key),
            ED25519 => key.len() == 32,
            ED448 => key.len() == 57,
            _ => false,
        })
    };
    found().unwrap_or(false)
}

/// Whether it has the form of a point on the curve (SEC 1 §2.3.3).
fn is_point(curve: &[u8], point: &[u8]) -> bool {
    let field = match curve {
        P256 => 32,
        P384 => 48,
        P521 => 66,
        // Another curve, or one that is written out.
        _ => return matches!(point, [2..=4, _, ..]),
    };
    match point {
        [2 | 3, x @ ..] => x.len() == field,
        [4, xy @ ..] => xy.len() == 2 * field,
        _ => false,
    }
}

/// The content, where the bytes are exactly one element of this tag.
fn only(data: &[u8], tag: u8) -> Option<&[u8]> {
    let [found] = elements(data)?;
    (found.tag == tag).then_some(found.content)
}

/// The elements, where the bytes are exactly so many.
fn elements<const N: usize>(mut data: &[u8]) -> Option<[Element<'_>; N]> {
    let mut found = Vec::with_capacity(N);
    while found.len() < N {
        let (one, rest) = element(data)?;
        found.push(one);
        data = rest;
    }
    if data.is_empty() { found.try_into().ok() } else { None }
}

/// The first element, and what follows it.
fn element(data: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = data.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((Element { tag, content, whole: &data[..data.len() - rest.len()] }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let header = match content.len() {
            short @ 0..=0x7f => vec![tag, short as u8],
            _ => vec![tag, 0x82, length[0], length[1]],
        };
        [header, content].concat()
    }

    fn key(algorithm: &[u8], parameters: &[u8], bits: &[u8]) -> Vec<u8> {
        let algorithm = der(SEQUENCE, &[&der(OBJECT_IDENTIFIER, &[algorithm]), parameters]);
        der(SEQUENCE, &[&algorithm, &der(BIT_STRING, &[&[0], bits])])
    }

    fn point(curve: &[u8], form: u8, length: usize) -> Vec<u8> {
        key(EC, &der(OBJECT_IDENTIFIER, &[curve]), &[vec![form], vec![7; length]].concat())
    }

    fn certificate(key: &[u8]) -> Vec<u8> {
        let empty = der(SEQUENCE, &[]);
        let version = der(VERSION, &[&der(INTEGER, &[&[2]])]);
        let tbs = der(SEQUENCE, &[&version, &der(INTEGER, &[&[1]]), &empty, &empty, &empty, &empty, key]);
        der(SEQUENCE, &[&tbs, &empty, &der(BIT_STRING, &[&[0, 1]])])
    }

    #[test]
    fn keys_and_certificates_are_told_from_other_der() {
        let rsa = key(RSA, &[5, 0], &der(SEQUENCE, &[&der(INTEGER, &[&[7; 257]]), &der(INTEGER, &[&[1, 0, 1]])]));
        let keys = [
            rsa.clone(),
            key(ED25519, &[], &[7; 32]),
            key(ED448, &[], &[7; 57]),
            point(P256, 4, 64),
            point(P256, 3, 32),
            point(P384, 4, 96),
            point(P521, 4, 132),
        ];
        for good in &keys {
            assert!(is_public_key(good) && is_certificate(&certificate(good)), "{good:02x?}");
            // A record of the other selector, cut short, or with a byte more.
            assert!(!is_certificate(good) && !is_public_key(&certificate(good)));
            assert!(!is_public_key(&good[..good.len() - 1]) && !is_public_key(&[good.as_slice(), &[0]].concat()));
        }
        for bad in [
            vec![],
            vec![0x30],
            vec![0x30, 0x02, 0x05, 0x00],
            vec![0x30, 0x80, 0, 0],
            vec![0x30, 0x83, 0xff, 0xff],
            key(RSA, &[5, 0], &[7; 32]),
            key(ED25519, &[], &[7; 31]),
            key(b"\x2a\x03\x04", &[], &[7; 32]),
            point(P256, 4, 63),
            point(P256, 5, 64),
            der(SEQUENCE, &[&rsa]),
        ] {
            assert!(!is_public_key(&bad) && !is_certificate(&certificate(&bad)), "{bad:02x?}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let good = certificate(&key(ED25519, &[], &[7; 32]));
        for cut in 0..good.len() {
            assert!(!is_certificate(&good[..cut]));
            let mut changed = good.clone();
            changed[cut] = 0xff;
            let _ = (is_certificate(&changed), is_public_key(&changed));
        }
    }
}
