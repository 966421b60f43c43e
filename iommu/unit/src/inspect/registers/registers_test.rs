//! What a unit says about itself, against raw register values.

use vm_memory::{Bytes, GuestAddress};

use crate::unit::testing::{Bench, full, plain};
use crate::{Pasid, SourceId, UnitConfig};

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find(|line| line.split(' ').next() == Some(name))
        .unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[test]
fn registers_are_shown_with_their_fields() {
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    bench.enable_interrupts(true);
    bench.write64(0x20, 0x1400);
    let text = bench.unit.describe().to_string();
    assert_eq!(line(&text, "VER"), "VER     000         00000050 MAJOR=5");
    let cap = line(&text, "CAP");
    assert!(cap.contains(" ND=6 SAGAW=6 MGAW=47 ZLR FRO=34 "), "{cap}");
    let ecap = line(&text, "ECAP");
    assert!(
        ecap.contains(" C QI IR EIM PT SC IRO=15 MHMV=15 NEST"),
        "{ecap}"
    );
    assert!(line(&text, "GSTS").ends_with("07000000 IRTPS IRES QIES"));
    assert!(line(&text, "RTADDR").ends_with("0000000000001400 TTM=scalable RTA=0x1000"));
    assert!(line(&text, "IQA").ends_with("DW IQA=0x100000 bytes=0x2000"));
    assert!(line(&text, "IRTA").ends_with("S=7 EIME IRTA=0x200000 entries=256"));
    assert!(line(&text, "FECTL").ends_with("80000000 IM"));
    // RTADDR takes effect with SRTP only.
    assert!(text.contains("\nlatched: translation off, legacy mode, root table 0x0\n"));
    assert!(text.contains("\ninterrupts_blocked: 0\n"));
}

#[test]
fn registers_of_features_that_are_not_offered_are_left_out() {
    let bench = Bench::new(&plain());
    let description = bench.unit.describe();
    assert_eq!(description.register("IRTA"), None);
    assert_eq!(description.register("FEUADDR"), None);
    let cap = description.register("CAP").unwrap();
    assert_eq!(cap.value, bench.read64(8));
}

#[test]
fn pending_faults_are_shown_until_the_guest_clears_them() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x7000);
    let port = bench.unit.port(SourceId(0x18));
    let mut view = port.view();
    let transaction = view.begin();
    let refused = transaction.read_obj::<u64>(GuestAddress(0x9000));
    assert!(refused.is_err());
    drop(transaction);
    bench.enable_interrupts(false);
    assert!(bench.unit.remap(SourceId(0x28), 0xfee0_0050, 0).is_err());

    let text = bench.unit.describe().to_string();
    assert!(
        text.contains("\nfault 0: 00:03.0 read 0x9000 reason 0x06 ReadDenied\n"),
        "{text}"
    );
    assert!(
        text.contains("\nfault 1: 00:05.0 interrupt 0x2 reason 0x22 InterruptEntryNotPresent\n"),
        "{text}"
    );
    assert!(line(&text, "FSTS").ends_with("00000002 PPF"));
    // Looking at it changed nothing.
    assert_eq!(bench.unit.describe().faults.len(), 2);
    bench.write32(0x22c, 0x8000_0000);
    assert_eq!(bench.unit.describe().faults.len(), 1);
}

#[test]
fn a_unit_answers_for_bindings_and_addresses() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x7000);
    let (source, other) = (SourceId(0x18), SourceId(0x20));
    let texts: Vec<_> = bench.unit.bindings([source, other]);
    assert_eq!(
        texts[0].to_string(),
        "00:03.0 second-stage 0x3000, 3 levels PWSNP, domain 1\n"
    );
    assert_eq!(
        texts[1].to_string(),
        "00:04.0 blocked: 0x02 ContextNotPresent\n"
    );
    assert_eq!(
        bench.unit.binding_of(source, None),
        texts[0].without_pasid.unwrap().binding
    );
    let before = bench.unit.stats();
    let explanation = bench.unit.explain(source, None, 0x123);
    assert_eq!(explanation.outcome.unwrap().address, 0x7123);
    let refused = bench.unit.explain(source, Pasid::new(1), 0x123);
    assert_eq!(refused.outcome.unwrap_err().reason.code(), 0x31);
    assert_eq!(bench.unit.stats(), before);
    assert!(bench.unit.describe().faults.is_empty());
}

#[test]
fn the_page_request_queue_is_shown_where_there_is_one() {
    assert_eq!(Bench::new(&full()).unit.describe().register("PQA"), None);
    let config = UnitConfig::svm(46);
    let bench = Bench::new(&config);
    bench.write64(0xd0, 0x40_0001);
    let text = bench.unit.describe().to_string();
    assert!(line(&text, "PQA").ends_with("PQS=1 PQA=0x400000 bytes=0x2000"));
    assert!(line(&text, "PRS").ends_with(" 00000000"));
    assert!(line(&text, "PECTL").ends_with("80000000 IM"));
}
