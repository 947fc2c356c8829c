"""German. Also the example of a language beside English: copy it to add another."""

from mg3d.languages.language import Language, words

_DEGREE = (
    r"(?:(?:wesentliche|relevante|signifikante|nennenswerte|sichere|eindeutige|weitere|deutliche|größere|wesentlich|relevant"
    r"|signifikant"
    r"|nennenswert|deutlich|sicher)[nrsm]? )*"
)
_SEEN = (
    r"(?:mehr )?(?:sicher )?(?:nachweisbar|nachgewiesen|nachzuweisen|erkennbar|erkannt|zu erkennen|abgrenzbar|abzugrenzen"
    r"|sichtbar|darstellbar"
    r"|dargestellt|vorhanden|ersichtlich|zu sehen|vorliegend|gesehen|auszumachen)"
)
_COPULA = r"(?:ist|sind|war|waren|wird|werden|zeigt sich|zeigen sich|stellt sich|stellen sich|erscheint|erscheinen|imponiert)"

GERMAN = Language(
    function_words=words(
        "der die das des dem den ein eine einer eines und ist sind im in am mit bei auf zu von kein keine keinen keiner nicht "
        "ohne links rechts "
        "beidseits sowie unauffällig regelrecht nachweis verdacht zeigt sich weder noch mögliche vermutlich nach bis"
    ),
    headings={
        "findings": (r"befunde?", r"befundung", r"beschreibung", r"bildgebender befund", r"ct[- ]befund"),
        "impression": (r"beurteilung", r"zusammenfassung", r"zusammenfassende beurteilung", r"fazit", r"diagnosen?", r"ergebnis",
                       r"nachtrag"),
        "technique": (r"(?:untersuchungs)?technik", r"methode", r"methodik",
                      r"(?:durchgeführte )?untersuchung(?:sprotokoll|en)?", r"protokoll",
                      r"kontrastmittel", r"dosis"),
        "history": (r"anamnese", r"klinische (?:angaben|fragestellung|informationen?)", r"klinik",
                    r"(?:rechtfertigende )?indikation(?:sstellung)?",
                    r"fragestellung", r"klinik und fragestellung", r"vorgeschichte"),
        "comparison": (r"voruntersuchung(?:en)?", r"vergleich", r"vorbefunde?", r"voraufnahmen?", r"zum vergleich"),
        "recommendation": (r"empfehlung(?:en)?", r"procedere", r"prozedere"),
        "signature": (r"unterschrift", r"befunder(?:in)?", r"freigegeben.*", r"gezeichnet.*", r"befundet.*"),
    },
    signature_lines=(
        r"mit (?:freundlichen|kollegialen|freundlichem|besten).{0,30} (?:grüßen|gruß)\b.*", r"gez\. .*",
        r"(?:elektronisch|digital) (?:signiert|freigegeben)\b.*",
        r"(?:dr|prof|pd)\. .{2,60}", r"(?:ober|fach|assistenz|chef)(?:arzt|ärztin)\b.*", r"ende des befund(?:e)?s?",
    ),
    not_given=(r"keine angaben?", r"entfällt", r"k\. ?a", r"ohne angaben?", r"nicht (?:angegeben|vorhanden|verfügbar)",
    r"n ?/ ?a", r"none", r"null", r"nan",
               r"siehe (?:oben|befund)", r"s\. ?o"),
    open_words=words(
        "der die das des dem den ein eine einen einem einer eines und oder sowie als in im an am auf aus bei beim mit nach von "
        "vom zu zum zur über unter "
        "zwischen ohne bis um für durch gegen kein keine keinen ist sind war waren wird werden nicht ca etwa maximal max sich "
        "sehr beider beiden"
    ),
    abbreviations=words(
        "z.b d.h u.a z.n v.a o.b i.v z b d h u a n v o i ca bzw ggf evtl inkl exkl max min re li bds dr prof pd pat st vgl sog "
        "insb insbes "
        "ehem rez path diff dd lk seg ant post lat med kaud kran vs resp mediast gez"
    ),
    abbreviations_before_number=words("nr abb img im ser se tab s bild vol"),
    abbreviations_before_lower_case=words("usw etc o.g u.ä"),
    nouns_after_ordinal=(r"rippe", r"bwk", r"lwk", r"hwk", r"wirbel", r"segment", r"interkostal",
    r"januar|februar|märz|april|mai|juni|juli",
                         r"august|september|oktober|november|dezember"),
    nouns_after_side=(r"lunge", r"oberlappen", r"unterlappen", r"mittellappen", r"nebenniere", r"niere", r"hilus", r"pleura",
    r"hauptbronchus"),
    nouns_before_number=words(
        "segment segmente höhe serie bild schicht grad typ kategorie stadium station rippe gruppe "
    "nummer klasse"
    ),
    dictated_marks=((r"punkt", "."), (r"komma", ","), (r"(?:neuer )?absatz|neue zeile", "\n")),
    pseudo_negations=(
        rf"keine? {_DEGREE}(?:befund|größen)?(?:änderung|veränderung|dynamik|zunahme|progredienz|progress|wachstum"
        r"|befundwandel|größenzunahme)(?:en)?"
        r"(?: (?:der|des|im|in|von|zur|zum))?",
        rf"kein {_DEGREE}(?:größen)?(?:progress|wachstum|befundwandel)",
        rf"nicht {_DEGREE}(?:verändert|geändert|größer|kleiner|gewachsen|größenprogredient|progredient)",
        rf"ohne {_DEGREE}(?:befund|größen)?(?:änderung|veränderung|dynamik|progredienz|wachstum|größenzunahme)",
        r"mit oder ohne", r"nicht nur",
        r"nicht (?:beurteilbar|beurteilt|erfasst|abgebildet|durchgeführt|vorliegend)", r"keine? voruntersuchung(?:en)?",
        r"kein zweifel", r"nicht vollständig",
        r"ohne (?:i\. ?v\. ?)?(?:kontrastmittel|km)(?:gabe)?",
    ),
    negations_forward=(
        r"keine?[nrsm]?", r"kein", r"nicht", r"ohne", r"weder", r"noch", r"frei von", r"fehlen(?:de[nrsm]?)?(?: von| eine[rs])?",
        r"ausschluss (?:von|eine[rs])",
        r"negativ für", r"nie", r"nichts", r"rückbildung (?:de[rs]|von)",
    ),
    negations_backward=(
        rf"nicht {_SEEN}", rf"nicht (?:\w+ ){{0,2}}{_SEEN}", r"nicht mehr", r"ausgeschlossen",
        r"vollständig (?:zurückgebildet|rückläufig|regredient|resorbiert)",
        r"zurückgebildet", r"verschwunden", r"fehlt", r"fehlen", r"entfernt", r"keine?$", r"negativ$", r"aufgelöst",
    ),
    doubts_forward=(
        r"v\. ?a\.?(?: auf)?", r"verdacht auf", r"verdächtig auf", r"suspekt auf", r"fraglich\w*", r"möglich\w*",
        r"möglicherweise", r"wahrscheinlich\w*", r"vermutlich\w*",
        r"mutmaßlich\w*", r"evtl\.?", r"eventuell\w*", r"dd\.?:?", r"differential?diagnostisch", r"differenzialdiagnostisch",
        r"am ehesten", r"hinweisend auf",
        r"könnten?", r"vereinbar mit der möglichkeit", r"a\. ?e\.?", r"wohl",
    ),
    doubts_backward=(
        r"nicht (?:sicher |mit sicherheit |vollständig )?(?:auszuschließen|ausgeschlossen|auszuschliessen)",
        r"kann nicht (?:sicher )?ausgeschlossen werden",
        r"nicht ausschließbar", rf"{_COPULA} (?:\w+ )?(?:möglich|denkbar|wahrscheinlich|fraglich|unklar|verdächtig|unsicher)",
        r"nicht sicher \w+", r"in frage",
        r"vermutet", r"zu diskutieren",
    ),
    doubts_around=(r"versus", r"vs\.?", r"\?+"),
    normals=(
        r"unauffällig\w*", r"regelrecht\w*", r"normal\w*", r"altersentsprechend\w*", r"o\. ?b\.?", r"regelhaft\w*",
        r"zeitgerecht\w*", r"erhalten", r"intakt\w*",
        r"normwertig\w*", r"im normbereich", r"physiologisch\w*", r"mittelständig\w*", r"orthotop\w*",
        rf"{_COPULA} (?:\w+ )?(?:frei|glatt\w*|homogen|symmetrisch|zart|offen|schlank)(?! von\b)",
        r"(?:frei|zart|offen|schlank|mittelständig)(?=\W*$)", r"glatt begrenzt\w*", r"durchgängig", r"zarte?[rs]?",
        r"schlanke?[rs]?",
    ),
    terminations=(
        r"aber", r"jedoch", r"außer", r"ausser", r"abgesehen von", r"bis auf", r"während", r"sondern", r"dagegen", r"hingegen",
        r"allerdings", r"mit ausnahme", r"trotz",
        r"wegen", r"bedingt durch", r"obwohl",
        r"und (?:ein|eine|einen|der|die|das|es|zeigt|zwei|drei|multiple|mehrere|kleine[rs]?|mäßige[rs]?)", r"lediglich", r"nur",
        r"welche[rs]?", r"bei (?:bekannte[mnr]|vorbestehende[mnr]|zustand)",
    ),
    alternatives=(r"oder", r"noch", r"bzw\.?", r"und/oder"),
    additions=(r"und", r"sowie"),
    verbs=(r"ist", r"sind", r"war", r"waren", r"wird", r"werden", r"zeigt", r"zeigen", r"liegt", r"hat", r"haben"),
    findings=(
        r"(?!lymph)\w*knoten", r"\w*rundherd\w*", r"\w*herd(?:e|es|en)?", r"\w*läsion\w*", r"\w*erguss\w*", r"\w*ergüsse\w*",
        r"\w*verschattung\w*", r"\w*verdichtung\w*",
        r"\w*infiltrat\w*", r"\w*konsolidier\w*", r"\w*atelektas\w*", r"dystelektas\w*", r"\w*emphysem\w*",
        r"\w*pneumothorax\w*", r"\w*pneumonie\w*", r"\w*pneumonisch\w*",
        r"\w*fibros\w*", r"\w*narb\w*", r"\w*verdick\w*", r"\w*kalk\w*", r"\w*verkalk\w*", r"\w*plaque\w*", r"\w*sklerose\w*",
        r"\w*hernie\w*", r"\w*lymphadenopath\w*",
        r"\w*vergrößer\w*", r"\w*erweiter\w*", r"\w*ektas\w*", r"\w*aneurysm\w*", r"\w*stenose\w*", r"\w*thromb\w*",
        r"\w*embol\w*", r"\w*fraktur\w*", r"\w*metasta\w*",
        r"\w*tumor\w*", r"\w*karzinom\w*", r"\w*malign\w*", r"\w*zyst\w*", r"\w*abszess\w*", r"\w*kavern\w*", r"\w*stauung\w*",
        r"\w*ödem\w*", r"\w*blutung\w*", r"\w*hämatom\w*",
        r"kardiomegalie", r"\w*flüssigkeit\w*", r"milchglas\w*", r"\w*bulla\w*", r"\w*bullös\w*", r"\w*bullae",
        r"\w*granulom\w*", r"\w*degenerat\w*", r"\w*spondyl\w*", r"\w*stein(?:e|en)?",
        r"\w*steatose\w*", r"\w*katheter\w*", r"\w*schrittmacher\w*", r"\w*stent\w*", r"\w*drainage\w*", r"\w*implantat\w*",
        r"\w*verschluss\w*", r"\w*raumforderung\w*", r"\w*adenom\w*",
        r"\w*dissektion\w*", r"\w*aszites\w*", r"\w*patholog\w*", r"\w*auffälligkeit\w*", r"\w*defekt\w*", r"\w*osteolys\w*",
        r"\w*destruktion\w*", r"\w*verlagerung\w*", r"\w*dilat\w*",
    ),
    anatomy=(
        r"lunge\w*", r"\w*lappen\w*", r"trachea", r"\w*bronch\w*", r"carina", r"pleura\w*", r"mediastin\w*", r"hil(?:us|i)",
        r"herz\w*", r"perikard\w*", r"aorta\w*", r"\w*gefäße?n?",
        r"\w*strukturen", r"kontur\w*", r"größe", r"weite", r"form", r"lage", r"thorax\w*", r"oberbauch\w*", r"leber", r"milz",
        r"gallenblase", r"pankreas", r"nieren?", r"nebennieren?",
        r"schilddrüse", r"ösophagus", r"magen", r"\w*knochen\w*", r"wirbel\w*", r"rippen?", r"sternum", r"links", r"rechts",
        r"beidseits", r"beide[rns]?", r"rechte[rns]?", r"linke[rns]?",
        r"lymphknoten", r"\w*weichteile\w*", r"miterfasste?\w*", r"soweit", r"beurteilbar", r"nativ\w*",
    ),
)  # fmt: skip
