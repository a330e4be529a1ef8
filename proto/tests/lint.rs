//! The contracts keep to the usual rules of buf's STANDARD category, checked on the compiled descriptors.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use prost_reflect::{DescriptorPool, EnumDescriptor, MessageDescriptor};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(garrison_proto::FILE_DESCRIPTOR_SET).unwrap()
}

fn ours(package: &str) -> bool {
    package.starts_with("garrison.")
}

fn upper_snake(name: &str) -> String {
    let mut text = String::new();
    for (index, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && index > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

fn is_lower_snake(name: &str) -> bool {
    name.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn packages_follow_their_folders_and_end_in_a_version() {
    for file in pool().files().filter(|file| ours(file.package_name())) {
        let folder = file.package_name().replace('.', "/");
        assert!(file.name().starts_with(&format!("{folder}/")), "{}", file.name());
        assert!(file.package_name().ends_with(".v1"), "{}", file.name());
    }
}

#[test]
fn every_method_has_a_request_and_a_response_of_its_own() {
    let mut used = BTreeSet::new();
    let mut methods = 0;
    for service in pool().services() {
        assert!(service.name().ends_with("Service"), "{}", service.full_name());
        for method in service.methods() {
            methods += 1;
            for (message, suffix) in [(method.input(), "Request"), (method.output(), "Response")] {
                assert_eq!(
                    message.name(),
                    format!("{}{suffix}", method.name()),
                    "{}",
                    method.full_name()
                );
                assert!(
                    used.insert(message.full_name().to_owned()),
                    "{} is used twice",
                    message.full_name()
                );
            }
        }
    }
    assert!(methods > 60, "only {methods} methods were looked at");
}

fn check_enum(e: &EnumDescriptor) {
    let prefix = format!("{}_", upper_snake(e.name()));
    let zero = e.get_value(0).unwrap();
    assert_eq!(zero.name(), format!("{prefix}UNSPECIFIED"), "{}", e.full_name());
    for value in e.values() {
        assert!(value.name().starts_with(&prefix), "{}", value.full_name());
    }
}

fn check_message(message: &MessageDescriptor) {
    for field in message.fields() {
        assert!(is_lower_snake(field.name()), "{}", field.full_name());
    }
    message.child_enums().for_each(|e| check_enum(&e));
    message.child_messages().for_each(|child| check_message(&child));
}

#[test]
fn names_have_the_usual_form() {
    let pool = pool();
    for message in pool.all_messages().filter(|message| ours(message.package_name())) {
        check_message(&message);
    }
    for e in pool.all_enums().filter(|e| ours(e.package_name())) {
        check_enum(&e);
    }
}

#[test]
fn lists_are_paged_after_aip_158() {
    for message in pool().all_messages() {
        let has = |name: &str| message.get_field_by_name(name).is_some();
        if has("page_token") {
            assert!(has("page_size"), "{} has a page token and no size", message.full_name());
        }
    }
}
