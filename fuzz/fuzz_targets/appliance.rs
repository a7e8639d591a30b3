//! `appliance.json`, as it comes or a true one with edits: what is accepted keeps every rule, and reads the same
//! when it is written again.
#![no_main]

use coffer_fuzz::edited;
use coffer_image::appliance::Appliance;
use libfuzzer_sys::fuzz_target;

const TRUE: &[u8] = br#"{"version":1,"modules":["a.ko","b.ko"],"root_fs":"erofs","network":{"mode":"nat","address":"10.0.2.15","prefix":24,"gateway":"10.0.2.2","egress":[{"cidr":"10.0.0.0/8","protocol":"tcp","ports":{"min":1,"max":9}}],"listen":[443],"until_attested":true},"verifier":{"url":"https://192.0.2.7:8443","ca":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n","release_key":"0411111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111"},"secrets":[{"id":"site/tls-key","file":"tls-key","mode":"0400"}],"volumes":[{"disk":"data","device":"/dev/vdb","path":"/data","fs":"ext4"}],"workload":{"argv":["/bin/site"],"env":["A=b"],"tmpfs":["/tmp"],"restart":true}}"#;

fn check(data: &[u8]) {
    if let Ok(appliance) = Appliance::parse(data) {
        assert!(data.len() <= 128 << 10);
        assert_eq!(appliance.check(), Ok(()));
        let written = serde_json::to_vec(&appliance).expect("what was read is written");
        assert_eq!(Appliance::parse(&written), Ok(appliance));
    }
}

fuzz_target!(init: {
    assert_eq!(Appliance::parse(TRUE).map(drop), Ok(()), "the original is accepted");
}, |data: &[u8]| {
    if data.first() == Some(&b'{') {
        check(data);
    } else {
        check(&edited(TRUE, data));
    }
});
