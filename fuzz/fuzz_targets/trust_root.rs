//! Whatever is read as a root has exactly one encoding, and none provisions a device without its signatures.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pithead_sealing::Site;
use pithead_sealing::trust::{Clock, Device, RoleSpki, RootFields, Sha256Digest};

fuzz_target!(|data: &[u8]| {
    if let Ok((root, digest)) = RootFields::read_unverified(data) {
        let payload = root.encode();
        assert_eq!(Sha256Digest::of(&payload), digest);
        assert!(data.windows(payload.len()).any(|window| window == payload));
        let site = Site::new("fuzz").expect("a site");
        if let Ok(device) = Device::provision(&root.authority, &site, data, Clock::default()) {
            assert_eq!(device.root().fields(), &root);
            assert!(device.verified_key(Clock::default()).is_err());
        }
    }
    if let Ok(key) = RoleSpki::from_der(data) {
        assert_eq!(key.der(), data);
    }
});
