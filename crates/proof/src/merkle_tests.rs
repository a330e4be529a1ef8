use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// The definition of RFC 9162 §2.1.1, word for word.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(largest_power_below(many.len() as u64) as usize);
            node_hash(&mth(left), &mth(right))
        }
    }
}

fn log(size: u64) -> (Vec<Hash>, HashMap<Node, Hash>, Tree) {
    let leaves: Vec<Hash> = (0..size).map(|i| leaf_hash(&i.to_be_bytes())).collect();
    let mut nodes = HashMap::new();
    let mut tree = Tree::new();
    for leaf in &leaves {
        tree.push(*leaf, |node, hash| {
            assert!(nodes.insert(node, hash).is_none());
        });
    }
    (leaves, nodes, tree)
}

#[test]
fn agrees_with_the_published_vectors() {
    // From the test data of RFC 6962 implementations (certificate-transparency-go, merkle tree tests).
    let inputs: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = Tree::new();
    assert_eq!(hex::encode(tree.root()), roots[0]);
    for (input, root) in inputs.iter().zip(&roots[1..]) {
        tree.push(leaf_hash(input), |_, _| {});
        assert_eq!(hex::encode(tree.root()), *root);
    }
}

#[test]
fn every_proof_of_every_small_tree_holds_and_no_other_does() {
    for size in 1..=70 {
        let (leaves, nodes, tree) = log(size);
        assert_eq!(tree.root(), mth(&leaves));
        let stored = peaks(size).iter().map(|n| nodes[n]).collect();
        assert_eq!(Tree::from_peaks(size, stored).unwrap(), tree);
        for index in 0..size {
            let plan = Plan::inclusion(index, size).unwrap();
            let proof = plan.resolve(|n| nodes.get(&n).copied()).unwrap();
            let leaf = &leaves[index as usize];
            verify_inclusion(leaf, index, size, &proof, &tree.root()).unwrap();
            for other in (0..size).filter(|o| *o != index) {
                assert!(verify_inclusion(leaf, other, size, &proof, &tree.root()).is_err());
            }
            let mut long = proof.clone();
            long.push([0; 32]);
            assert!(verify_inclusion(leaf, index, size, &long, &tree.root()).is_err());
        }
        for first in 0..=size {
            let plan = Plan::consistency(first, size).unwrap();
            let proof = plan.resolve(|n| nodes.get(&n).copied()).unwrap();
            let older = mth(&leaves[..first as usize]);
            verify_consistency(first, &older, size, &tree.root(), &proof).unwrap();
            if first > 0 {
                let wrong = leaf_hash(b"another history");
                assert!(verify_consistency(first, &wrong, size, &tree.root(), &proof).is_err());
                assert!(verify_consistency(first, &older, size, &wrong, &proof).is_err());
            }
        }
    }
}

#[test]
fn refuses_what_cannot_be() {
    assert!(matches!(Plan::inclusion(3, 3), Err(ProofError::OutOfRange { .. })));
    assert!(matches!(Plan::consistency(4, 3), Err(ProofError::Shrunk { .. })));
    let zero = [0; 32];
    assert!(verify_inclusion(&zero, 0, 0, &[], &zero).is_err());
    assert!(verify_consistency(2, &zero, 1, &zero, &[]).is_err());
}

proptest! {
    #[test]
    fn a_flipped_bit_breaks_an_inclusion_proof(size in 2u64..500, at in any::<u64>(), bit in 0usize..256, which in any::<usize>()) {
        let (leaves, nodes, tree) = log(size);
        let index = at % size;
        let mut proof = Plan::inclusion(index, size).unwrap().resolve(|n| nodes.get(&n).copied()).unwrap();
        let which = which % proof.len();
        proof[which][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(verify_inclusion(&leaves[index as usize], index, size, &proof, &tree.root()).is_err());
    }

    #[test]
    fn a_flipped_bit_breaks_a_consistency_proof(size in 2u64..500, at in any::<u64>(), bit in 0usize..256, which in any::<usize>()) {
        let (leaves, nodes, tree) = log(size);
        let first = 1 + at % (size - 1);
        let mut proof = Plan::consistency(first, size).unwrap().resolve(|n| nodes.get(&n).copied()).unwrap();
        let which = which % proof.len();
        proof[which][bit / 8] ^= 1 << (bit % 8);
        let older = mth(&leaves[..first as usize]);
        prop_assert!(verify_consistency(first, &older, size, &tree.root(), &proof).is_err());
    }

    #[test]
    fn nothing_hostile_panics(index in any::<u64>(), first in any::<u64>(), size in any::<u64>(),
                              proof in proptest::collection::vec(any::<[u8; 32]>(), 0..140)) {
        let root = [7; 32];
        let _ = verify_inclusion(&root, index, size, &proof, &root);
        let _ = verify_consistency(first, &root, size, &root, &proof);
        let _ = Plan::inclusion(index, size);
        let _ = Plan::consistency(first, size);
    }
}
