//! What the fields of a template mean: the information elements of the IANA registry "IP Flow Information Export
//! (IPFIX) Entities" and of NetFlow version 9 (RFC 3954 §8), each with the place its value takes in a record.

/// Private enterprise number that marks a field of the reverse direction (RFC 5103 §6.1).
pub const REVERSE: u32 = 29_305;

/// Places for numbers. A record has at most one value for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // each is an information element or the schema's column of the same name
pub enum Slot {
    SrcPackets,
    DstPackets,
    SrcBytes,
    DstBytes,
    SrcIpBytes,
    DstIpBytes,
    TotalPackets,
    TotalIpBytes,
    OutPackets,
    OutIpBytes,
    Protocol,
    IpVersion,
    SrcPort,
    DstPort,
    SrcTcpFlags,
    DstTcpFlags,
    Vlan,
    IcmpTypeCode,
    IcmpType,
    IcmpCode,
    StartUptime,
    EndUptime,
    StartSeconds,
    EndSeconds,
    StartMs,
    EndMs,
    StartNtp,
    EndNtp,
    StartDeltaUs,
    EndDeltaUs,
    BootMs,
    DurationMs,
    DurationUs,
    ObservedSeconds,
    ObservedMs,
    ObservedNtp,
    EndReason,
    BiflowDirection,
    SamplerId,
    SelectorId,
    SamplingInterval,
    RandomInterval,
    PacketInterval,
    PacketSpace,
    ForwardingStatus,
    FirewallEvent,
    Segment,
    HttpStatus,
}

/// Number of [`Slot`]s.
pub const SLOTS: usize = Slot::HttpStatus as usize + 1;

const _: () = assert!(SLOTS <= 64);

/// Places for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Text {
    HttpMethod,
    HttpHost,
    HttpTarget,
    HttpUserAgent,
}

/// Number of [`Text`]s.
pub const TEXTS: usize = Text::HttpUserAgent as usize + 1;

/// How a value that has no column is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An unsigned number.
    Number,
    /// As [`Kind::Number`], where 0 says that there is none.
    Positive,
    /// An IPv4 or IPv6 address, told by its length; all zeros say that there is none.
    Address,
    /// A link address.
    Mac,
    /// UTF-8.
    Text,
    /// Octets, as hexadecimal digits.
    Octets,
    /// Not known: a number when it is short, else text or octets.
    Unknown,
}

/// What is done with a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is a number with a place of its own.
    Number(Slot),
    /// The sender's address.
    Src,
    /// The receiver's address.
    Dst,
    /// The sender's link address.
    SrcMac,
    /// The receiver's link address.
    DstMac,
    /// It is text with a place of its own.
    Text(Text),
    /// It goes beside the columns under a name.
    Extra(&'static str, Kind),
    /// It goes beside the columns under its number.
    Numbered,
    /// Nothing: padding, or a structure that no column has room for.
    Skip,
}

/// What a field means. `enterprise` is 0 for the registry's own.
pub fn action(enterprise: u32, id: u16) -> Action {
    match enterprise {
        0 => registered(id),
        REVERSE => reverse(id),
        // CERT (yaf, silk): the few that yaf sends in each record and that have a column.
        6871 => match id {
            14 => Action::Extra("initialTCPFlags", Kind::Number),
            15 => Action::Extra("unionTCPFlags", Kind::Number),
            33 => Action::Extra("silkAppLabel", Kind::Number),
            _ => Action::Numbered,
        },
        _ => Action::Numbered,
    }
}

fn reverse(id: u16) -> Action {
    match id {
        1 | 85 => Action::Number(Slot::DstIpBytes),
        2 | 86 => Action::Number(Slot::DstPackets),
        6 => Action::Number(Slot::DstTcpFlags),
        231 => Action::Number(Slot::DstBytes),
        _ => Action::Numbered,
    }
}

fn registered(id: u16) -> Action {
    use Action::{Number, Skip};
    match id {
        1 => Number(Slot::SrcIpBytes),
        2 => Number(Slot::SrcPackets),
        4 => Number(Slot::Protocol),
        6 => Number(Slot::SrcTcpFlags),
        7 | 180 | 182 => Number(Slot::SrcPort),
        8 | 27 => Action::Src,
        11 | 181 | 183 => Number(Slot::DstPort),
        12 | 28 => Action::Dst,
        21 => Number(Slot::EndUptime),
        22 => Number(Slot::StartUptime),
        23 => Number(Slot::OutIpBytes),
        24 => Number(Slot::OutPackets),
        32 | 139 => Number(Slot::IcmpTypeCode),
        34 => Number(Slot::SamplingInterval),
        48 => Number(Slot::SamplerId),
        50 => Number(Slot::RandomInterval),
        56 => Action::SrcMac,
        58 | 243 => Number(Slot::Vlan),
        60 => Number(Slot::IpVersion),
        80 => Action::DstMac,
        85 => Number(Slot::TotalIpBytes),
        86 => Number(Slot::TotalPackets),
        89 => Number(Slot::ForwardingStatus),
        136 => Number(Slot::EndReason),
        150 => Number(Slot::StartSeconds),
        151 => Number(Slot::EndSeconds),
        152 => Number(Slot::StartMs),
        153 => Number(Slot::EndMs),
        154 | 156 => Number(Slot::StartNtp),
        155 | 157 => Number(Slot::EndNtp),
        158 => Number(Slot::StartDeltaUs),
        159 => Number(Slot::EndDeltaUs),
        160 => Number(Slot::BootMs),
        161 => Number(Slot::DurationMs),
        162 => Number(Slot::DurationUs),
        176 | 178 => Number(Slot::IcmpType),
        177 | 179 => Number(Slot::IcmpCode),
        231 => Number(Slot::SrcBytes),
        232 => Number(Slot::DstBytes),
        233 => Number(Slot::FirewallEvent),
        239 => Number(Slot::BiflowDirection),
        298 => Number(Slot::SrcPackets),
        299 => Number(Slot::DstPackets),
        302 => Number(Slot::SelectorId),
        305 => Number(Slot::PacketInterval),
        306 => Number(Slot::PacketSpace),
        322 => Number(Slot::ObservedSeconds),
        323 => Number(Slot::ObservedMs),
        324 | 325 => Number(Slot::ObservedNtp),
        351 => Number(Slot::Segment),
        457 => Number(Slot::HttpStatus),
        459 => Action::Text(Text::HttpMethod),
        460 => Action::Text(Text::HttpHost),
        461 => Action::Text(Text::HttpTarget),
        468 => Action::Text(Text::HttpUserAgent),
        // Padding, and lists of structured data (RFC 6313).
        210 | 291..=293 => Skip,
        _ => match EXTRAS.binary_search_by_key(&id, |&(id, ..)| id) {
            Ok(i) => Action::Extra(EXTRAS[i].1, EXTRAS[i].2),
            Err(_) => Action::Numbered,
        },
    }
}

// Elements that have no column, by the registry's names, ordered by number.
const EXTRAS: &[(u16, &str, Kind)] = {
    use Kind::{Address, Mac, Number, Octets, Positive, Text};
    &[
        (3, "deltaFlowCount", Number),
        (5, "ipClassOfService", Number),
        (9, "sourceIPv4PrefixLength", Number),
        (10, "ingressInterface", Positive),
        (13, "destinationIPv4PrefixLength", Number),
        (14, "egressInterface", Positive),
        (15, "ipNextHopIPv4Address", Address),
        (16, "bgpSourceAsNumber", Positive),
        (17, "bgpDestinationAsNumber", Positive),
        (18, "bgpNextHopIPv4Address", Address),
        (19, "postMCastPacketDeltaCount", Number),
        (20, "postMCastOctetDeltaCount", Number),
        (25, "minimumIpTotalLength", Number),
        (26, "maximumIpTotalLength", Number),
        (29, "sourceIPv6PrefixLength", Number),
        (30, "destinationIPv6PrefixLength", Number),
        (31, "flowLabelIPv6", Positive),
        (33, "igmpType", Positive),
        (35, "samplingAlgorithm", Number),
        (36, "flowActiveTimeout", Number),
        (37, "flowIdleTimeout", Number),
        (38, "engineType", Number),
        (39, "engineId", Number),
        (40, "exportedOctetTotalCount", Number),
        (41, "exportedMessageTotalCount", Number),
        (42, "exportedFlowRecordTotalCount", Number),
        (44, "sourceIPv4Prefix", Address),
        (45, "destinationIPv4Prefix", Address),
        (46, "mplsTopLabelType", Number),
        (47, "mplsTopLabelIPv4Address", Address),
        (49, "samplerMode", Number),
        (51, "classId", Number),
        (52, "minimumTTL", Number),
        (53, "maximumTTL", Number),
        (54, "fragmentIdentification", Number),
        (55, "postIpClassOfService", Number),
        (57, "postDestinationMacAddress", Mac),
        (59, "postVlanId", Positive),
        (61, "flowDirection", Number),
        (62, "ipNextHopIPv6Address", Address),
        (63, "bgpNextHopIPv6Address", Address),
        (64, "ipv6ExtensionHeaders", Number),
        (70, "mplsTopLabelStackSection", Octets),
        (71, "mplsLabelStackSection2", Octets),
        (72, "mplsLabelStackSection3", Octets),
        (81, "postSourceMacAddress", Mac),
        (82, "interfaceName", Text),
        (83, "interfaceDescription", Text),
        (84, "samplerName", Text),
        (88, "fragmentOffset", Number),
        (90, "mplsVpnRouteDistinguisher", Octets),
        (91, "mplsTopLabelPrefixLength", Number),
        (94, "applicationDescription", Text),
        (95, "applicationId", Octets),
        (96, "applicationName", Text),
        (98, "postIpDiffServCodePoint", Number),
        (99, "multicastReplicationFactor", Number),
        (100, "className", Text),
        (128, "bgpNextAdjacentAsNumber", Positive),
        (129, "bgpPrevAdjacentAsNumber", Positive),
        (130, "exporterIPv4Address", Address),
        (131, "exporterIPv6Address", Address),
        (132, "droppedOctetDeltaCount", Number),
        (133, "droppedPacketDeltaCount", Number),
        (134, "droppedOctetTotalCount", Number),
        (135, "droppedPacketTotalCount", Number),
        (137, "commonPropertiesId", Number),
        (138, "observationPointId", Number),
        (140, "mplsTopLabelIPv6Address", Address),
        (141, "lineCardId", Number),
        (142, "portId", Number),
        (143, "meteringProcessId", Number),
        (144, "exportingProcessId", Number),
        (145, "templateId", Number),
        (146, "wlanChannelId", Number),
        (147, "wlanSSID", Text),
        (148, "flowId", Number),
        (149, "observationDomainId", Number),
        (163, "observedFlowTotalCount", Number),
        (164, "ignoredPacketTotalCount", Number),
        (165, "ignoredOctetTotalCount", Number),
        (166, "notSentFlowTotalCount", Number),
        (167, "notSentPacketTotalCount", Number),
        (168, "notSentOctetTotalCount", Number),
        (184, "tcpSequenceNumber", Number),
        (185, "tcpAcknowledgementNumber", Number),
        (186, "tcpWindowSize", Number),
        (189, "ipHeaderLength", Number),
        (190, "totalLengthIPv4", Number),
        (192, "ipTTL", Number),
        (194, "mplsPayloadLength", Number),
        (195, "ipDiffServCodePoint", Number),
        (196, "ipPrecedence", Number),
        (197, "fragmentFlags", Number),
        (198, "octetDeltaSumOfSquares", Number),
        (200, "mplsTopLabelTTL", Number),
        (206, "isMulticast", Number),
        (207, "ipv4IHL", Number),
        (208, "ipv4Options", Number),
        (209, "tcpOptions", Number),
        (211, "collectorIPv4Address", Address),
        (212, "collectorIPv6Address", Address),
        (213, "exportInterface", Number),
        (214, "exportProtocolVersion", Number),
        (215, "exportTransportProtocol", Number),
        (216, "collectorTransportPort", Number),
        (217, "exporterTransportPort", Number),
        (218, "tcpSynTotalCount", Number),
        (219, "tcpFinTotalCount", Number),
        (220, "tcpRstTotalCount", Number),
        (221, "tcpPshTotalCount", Number),
        (222, "tcpAckTotalCount", Number),
        (223, "tcpUrgTotalCount", Number),
        (224, "ipTotalLength", Number),
        (225, "postNATSourceIPv4Address", Address),
        (226, "postNATDestinationIPv4Address", Address),
        (227, "postNAPTSourceTransportPort", Positive),
        (228, "postNAPTDestinationTransportPort", Positive),
        (229, "natOriginatingAddressRealm", Number),
        (230, "natEvent", Number),
        (234, "ingressVRFID", Positive),
        (235, "egressVRFID", Positive),
        (236, "VRFname", Text),
        (237, "postMplsTopLabelExp", Number),
        (238, "tcpWindowScale", Number),
        (240, "ethernetHeaderLength", Number),
        (241, "ethernetPayloadLength", Number),
        (242, "ethernetTotalLength", Number),
        (244, "dot1qPriority", Number),
        (245, "dot1qCustomerVlanId", Number),
        (246, "dot1qCustomerPriority", Number),
        (252, "ingressPhysicalInterface", Positive),
        (253, "egressPhysicalInterface", Positive),
        (254, "postDot1qVlanId", Positive),
        (256, "ethernetType", Number),
        (258, "collectionTimeMilliseconds", Number),
        (276, "observedFlowTotalCount", Number),
        (281, "postNATSourceIPv6Address", Address),
        (282, "postNATDestinationIPv6Address", Address),
        (283, "natPoolId", Number),
        (284, "natPoolName", Text),
        (300, "observationDomainName", Text),
        (303, "informationElementId", Number),
        (304, "selectorAlgorithm", Number),
        (309, "samplingSize", Number),
        (310, "samplingPopulation", Number),
        (320, "absoluteError", Number),
        (335, "selectorName", Text),
        (346, "privateEnterpriseNumber", Number),
        (352, "layer2OctetDeltaCount", Number),
        (353, "layer2OctetTotalCount", Number),
        (361, "portRangeStart", Number),
        (362, "portRangeEnd", Number),
        (363, "portRangeStepSize", Number),
        (364, "portRangeNumPorts", Number),
        (365, "staMacAddress", Mac),
        (366, "staIPv4Address", Address),
        (367, "wtpMacAddress", Mac),
        (368, "ingressInterfaceType", Number),
        (369, "egressInterfaceType", Number),
        (371, "userName", Text),
        (374, "layer2SegmentIdType", Number),
        (409, "flowSelectorAlgorithm", Number),
        (410, "dataLinkFrameType", Number),
        (458, "sourcePrefixLength", Number),
        (462, "httpMessageVersion", Text),
        (463, "natInstanceID", Number),
        (464, "internalAddressRealm", Number),
        (465, "externalAddressRealm", Number),
        (466, "natQuotaExceededEvent", Number),
        (469, "httpContentType", Text),
        (470, "httpReasonPhrase", Text),
        (33_000, "INGRESS_ACL_ID", Octets),
        (33_001, "EGRESS_ACL_ID", Octets),
        (33_002, "FW_EXT_EVENT", Number),
        (40_000, "USERNAME", Text),
        (40_001, "XLATE_SRC_ADDR_IPV4", Address),
        (40_002, "XLATE_DST_ADDR_IPV4", Address),
        (40_003, "XLATE_SRC_PORT", Positive),
        (40_004, "XLATE_DST_PORT", Positive),
        (40_005, "FW_EVENT", Number),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_has_no_element_that_has_a_place_of_its_own() {
        assert!(EXTRAS.is_sorted_by(|a, b| a.0 < b.0));
        for &(id, name, kind) in EXTRAS {
            assert_eq!(action(0, id), Action::Extra(name, kind));
        }
    }
}
