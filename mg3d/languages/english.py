"""English."""

from mg3d.languages.language import Language, words

_COPULA = r"(?:is|are|was|were|be|been|appears?|appeared|remains?|remained|looks?|seems?)"
_ADVERB = (
    r"(?:(?!not\b)(?:\w+ly|now|also|again|well|still|quite|otherwise|both|all|less|more|most|very|grossly|of|in|and|to be) )*"
)
_SEEN = (
    r"(?:seen|identified|noted|observed|detected|found|present|visible|visuali[sz]ed|demonstrated|apparent|evident|appreciated"
    r"|shown|encountered|recogni[sz]ed|discernible|depicted|monitored|revealed|selected|distinguished|discerned|reported)"
)
_DEGREE = (
    r"(?:(?:significant|significantly|interval|appreciable|appreciably|substantial|substantially|relevant|definite|definitely"
    r"|obvious|further|real|major|notable|noticeable|noticeably|essential|essentially|important|meaningful|measurable|other|much"
    r"|clear|clearly|remarkable|considerable|considerably|suspicious|dramatic|clinically|visible|visibly|in|really) )*"
)
_REFER = r"(?:be|represent|reflect|indicate|suggest|correspond to|relate to|be related to|be due to|have)"
_SURELY = r"(?:entirely |completely |fully |reliably |safely |definitely |definitively |absolutely |with certainty )?"

ENGLISH = Language(
    function_words=words(
        "the of and in a an or is are was were with no not there to for on at by from this that which as been has have seen both "
        "right left"
    ),
    headings={
        "findings": (r"(?:ct |chest |imaging |radiological |pulmonary )*findings?(?: ?(?:/|and|&) ?(?:impression|conclusion))?",
                     r"(?:description|observations?|report)(?: of findings)?",
                     r"narrative", r"detailed? (?:report|findings)"),
        "impression": (r"(?:final |overall |radiological )?impressions?(?: (?:and|/|&) (?:plan|recommendations?))?",
                       r"conclusions?",
                       r"opinion", r"summary", r"assessment", r"interpretation", r"(?:radiological |imaging )?diagnos[ie]s",
                       r"addendum"),
        "technique": (r"(?:ct |imaging |scan(?:ning)? |examination )?(?:technique|protocol|procedure"
        r"|parameters)(?: and contrast)?",
                      r"(?:type of )?(?:exam|examination|study|investigation)(?: (?:performed|type|date|description))?",
                      r"contrast(?: medi\w+| agent)?",
                      r"(?:radiation )?dose(?: report| length product)?", r"ctdi(?:vol)?", r"dlp",
                      r"date(?: of (?:exam|examination|study))?"),
        "history": (
            r"(?:clinical |patient |medical |relevant )*(?:history|information|indications?)",
            r"(?:clinical |patient |medical )+(?:details|question|data|background|notes?)", r"clinical", r"symptoms", r"referral",
            r"reason for (?:the )?(?:exam|examination|study|scan|referral|request)",
        ),
        "comparison": (r"(?:date of )?comparisons?(?: (?:study|studies|exams?|with|to))?",
                       r"(?:prior|previous) (?:study|studies|exams?|examinations?|imaging)"),
        "recommendation": (r"recommend(?:ation|ations|ed follow[- ]up)", r"follow[- ]up(?: recommendations?)?", r"plan",
                           r"advice", r"notification",
                           r"communication"),
        "signature": (r"(?:electronically )?(?:signed|dictated|verified|approved|transcribed|finali[sz]ed"
        r"|authenticated)(?: (?:by|on|at|off))?.*",
                      r"(?:reported|read|interpreted|prepared|reviewed) by.*", r"attending(?: radiologist| physician)?",
                      r"radiologists?", r"resident",
                      r"signature"),
    },
    signature_lines=(
        r"(?:electronically |digitally )(?:signed|verified|authenticated|approved)\b.*",
        r"(?:dictated|signed|transcribed|verified|reported|approved|finali[sz]ed) (?:by|on)\b.*",
        r"i(?:,? the \w+ \w+,?)? (?:have )?(?:personally )?reviewed\b.*",
        r"(?:\*+ ?)?(?:end of (?:the )?(?:report|impression|dictation)|final report)(?: ?\*+)?",
        r"(?:(?:dr|prof)\.? .{2,40}|(?:[a-z]\. ?){0,2}[^.!?:\n]{4,40},? (?:m\.? ?d|frcr|mbbs|do)),?"
        r"(?: ?consultant.*| ?radiolog.*)?",
        r"(?:consultant |attending |staff )?radiologist",
        r"(?:yours sincerely|kind regards|with (?:kind|best) regards)\b.*",
    ),
    not_given=(r"not (?:given|available|reported|provided|applicable|specified|performed|done)", r"n ?/ ?a", r"na", r"nan",
    r"none", r"null", r"nil",
               r"no (?:report|text|data|information)", r"empty", r"unknown", r"see (?:above|below|report)", r"as above",
               r"pending", r"tbd"),
    open_words=words(
        "a an the of in on at by to from with without for and or nor but as than into within between along about around over "
        "under "
        "near per via is are was were be been has have had may might can could should would which that whose both no not neither "
        "either measuring measures x up approximately approx max min compared due including involving of"
    ),
    abbreviations=words(
        "e.g i.e eg ie dr prof mr mrs ms st approx vs cf al resp incl excl max min ca diam temp pat pt pts avg est sup inf ant "
        "post "
        "lat bilat susp seg w w/o dept ext int med vol resp hx dx tx rx bx f/u c/w s/p viz"
    ),
    abbreviations_before_number=words("no nr nos fig figs img imgs im ims ser se sl tab seq acc vol p pp ch ref art sec"),
    abbreviations_before_lower_case=words("etc a.m p.m mo mos yr yrs wk wks hr hrs op inc ltd jr"),
    nouns_after_ordinal=(r"vertebra", r"rib", r"costa", r"segment", r"intercostal", r"thoracic", r"lumbar", r"cervical"),
    nouns_after_side=(r"lung", r"lobe", r"upper", r"lower", r"middle", r"adrenal", r"kidney", r"breast", r"hilum", r"hilar",
    r"pleura", r"pleural",
                      r"hemidiaphragm", r"hemithorax", r"atrium", r"ventricle", r"main", r"subclavian", r"axilla", r"axillary",
                      r"apex", r"base",
                      r"side", r"rib", r"thyroid", r"diaphragm", r"costophrenic", r"pulmonary", r"bronchus", r"clavicle",
                      r"scapula", r"shoulder"),
    nouns_before_number=words(
        "segment segments level levels series image images slice slices grade type category stage station stations rib ribs zone "
        "class score birads rads li-rads lung-rads bi-rads group number table figure phase case lesion nodule finding "
        "node"
    ),
    dictated_marks=(
        (r"full stop", "."),
        (r"(?<!the )(?<!this )(?<!\ba )(?<!up )(?<!time )(?<!ive )(?<!vation )(?<!same )period(?! of\b)", "."),
        (r"comma", ","),
        (r"(?:new|next) (?:paragraph|line)", "\n"),
    ),
    pseudo_negations=(
        rf"no {_DEGREE}(?:changes?|differences?|growth|progression|regression|deterioration|resolution|alteration|evolution)",
        rf"no {_DEGREE}(?:increase|decrease|enlargement|reduction)(?: is| was)?(?: \w+)? (?:in|of) (?:the |its "
        r"|their )?(?:size|number|extent|volume"
        r"|known|previous\w*|existing|dimensions?|diameter|\d)",
        rf"no {_DEGREE}(?:increase|decrease|reduction) (?:in|of)(?: \w+){{0,3}}"
        r"(?= (?:effusions?|nodul\w*|mass(?:es)?|lesions?|opacit\w*|consolidat\w*|pneumothora\w*|collections?)\b)",
        rf"without {_DEGREE}(?:changes?|growth|progression|difference|regression|resolution)",
        rf"(?:has|have|had|is|are|was|were|did|does|do) not (?:been )?{_DEGREE}(?:chang\w+|grow\w*|progress\w*|alter\w*"
        r"|differ\w*|increased in size"
        r"|increased? in (?:number|extent)|decreased?|regress\w*|improve\w*|worse\w*|evolve\w*)",
        rf"(?:not|no) {_DEGREE}(?:changed|different|larger|bigger|smaller|wider|thicker|denser|worse|better|longer than"
        r"|greater than)",
        r"no(?:t)? (?:more|less|fewer|greater) than", r"with or without", r"with ?/ ?without", r"not only", r"not necessarily",
        r"if not",
        r"no (?:reasonable )?doubt", r"without (?:a |any )?doubt", r"not surprising\w*", r"not to be confused with",
        r"not to mention",
        r"(?:not |in)(?:yet )?(?:fully |completely |entirely |totally )?(?:resolved|cleared|healed|disappeared|regressed"
        r"|drained)",
        r"(?:has|have) not (?:yet )?(?:fully |completely |entirely )?(?:resolved|cleared|healed|disappeared)",
        r"(?:partial\w*|incomplete\w*|near(?:ly)?[- ]complete\w*|almost completely|nearly|mostly|partly|largely) (?:resol\w+"
        r"|clear\w+|regress\w+"
        r"|disappear\w+)",
        r"(?:cannot|can not|could not) be (?:\w+ly )*(?:evaluated|assessed|determined|measured|characteri[sz]ed|distinguished"
        r"|differentiated"
        r"|separated|compared|classified|followed)",
        r"not (?:\w+ly )*(?:evaluated|assessed|included|imaged|performed|given|administered|available|covered|measured"
        r"|characteri[sz]ed"
        r"|differentiated|compared|removed|known|mentioned|amenable|accessible)(?: previously)?",
        r"no (?:i\.?v\.? |intravenous |oral |iodinated |recent )*(?:contrast|priors?|previous|comparison|earlier|old|older"
        r"|former)"
        r"(?: (?:agent|medium|material|media|ct|study|studies|exams?|examinations?|imaging|scans?|films?|images?))*(?: (?:is"
        r"|was|are|were))?"
        r"(?: (?:given|administered|used|available|injected|applied))?",
        r"without (?:the )?(?:use of |administration of |giving )?(?:i\.?v\.? |intravenous |oral )*contrast(?: (?:agent|medium"
        r"|material|media))?",
        rf"(?:{_COPULA} )?not (?:previously |formerly )?(?:present|seen|noted|visible|reported|described|there) (?:on|in|at) "
        r"(?:the )?(?:prior"
        r"|previous|last|earlier"
        r"|old|comparison|initial|former|outside)",
        rf"(?:{_COPULA} )?not (?:previously|formerly) (?:present|seen|noted|visible|reported|described)",
        r"none of (?:the|these|them)(?: \w+)? (?:has|have) \w+",
        r"(?:larger|wider|greater|more|higher|lower|smaller|thicker|less|above|below|beyond|near|than)(?: than)? (?:the )?normal",
        r"normal[- ]sized? (?=node|lymph)", r"excluded from", r"no (?:previously|longer) (?:described|than)",
    ),
    negations_forward=(
        r"no", r"not", r"without", r"w/o", r"neither", r"nor", r"never", r"(?:complete |interval )?absence of", r"lack of",
        r"free (?:of|from)",
        r"negative for", r"clear of", r"devoid of", r"rule[sd] out(?= (?!by\b)\w)", r"ruling out", r"exclud(?:es|ing)",
        r"den(?:y|ies|ied)",
        r"fail(?:s|ed)? to (?:show|reveal|demonstrate|identify)",
        r"(?:complete |interval |full |total )*(?:resolution|disappearance|clearance) of",
        r"interval removal of", r"nothing", r"unable to (?:see|identify|find|detect)", r"none", r"lacks?",
        r"cannot (?:see|identify|find|detect)",
        r"against",
    ),
    negations_backward=(
        rf"(?:{_COPULA} )?(?:no longer|not|never|not yet)(?: been)? {_ADVERB}(?:any longer |any more )?{_SEEN}",
        rf"(?:no longer|not) (?:be )?{_SEEN}", rf"(?:cannot|can not|could not) (?:any longer |now )?be {_SEEN}",
        rf"{_COPULA} {_ADVERB}(?:absent|negative|ruled out|excluded|lacking|nil)", r"(?:absent|negative|nil|ruled out)(?=\W*$)",
        r"ruled out(?= by)",
        r"(?:has|have|had|is|are) (?:(?:now|since|meanwhile|completely|fully|entirely|totally|also|all"
        r"|spontaneously) )*(?:resolved|disappeared|cleared"
        r"|vanished|gone|regressed completely|receded completely)(?: completely)?",
        r"(?:has|have|had|was|were) (?:now |since |meanwhile |interval )?(?:been )?(?:since )?(?:removed|withdrawn|explanted)",
        r"(?:completely |fully |interval |now )?resolved", r"no longer (?:exists?|persists?)", r"none", r"no(?=\W*$)",
        r"(?:do|does|did) not (?:exist|persist|appear|develop|occur)",
    ),
    doubts_forward=(
        r"possibl[ey]", r"possibility of", r"probabl[ey]", r"likely(?! benign)", r"unlikely", r"suspicious (?:for|of)",
        r"suspicions? (?:for|of|about)",
        r"concern(?:ing|s)? (?:for|of|about|regarding)", r"worrisome (?:for|of)", r"suggest(?:s|ed|ive|ing|ion)?(?: of)?",
        r"suspected", r"suspect",
        rf"(?:may|might|could|can|would)(?: also| well| potentially| possibly| alternatively)? {_REFER}", r"maybe", r"perhaps",
        rf"(?:cannot|can not|could not|can't|unable to|not possible to) {_SURELY}(?:exclude|rule out)",
        r"not (?:excluding|ruling out)",
        r"(?:to |please )?(?:rule out|r/o|exclude)", r"question(?:able|s|ed)?(?: of)?(?! is)", r"query",
        r"presum(?:ed|ably|ptive)",
        r"differential(?: diagnos[ie]s| considerations?)?(?: includes?| of)?",
        r"favou?r(?:s|ed|ing)?(?: of| to be)?",
        r"uncertain(?:ty)?(?: about| regarding)?", r"potential(?:ly)?", r"apparent", r"susp",
        r"raises? the (?:question|possibility|suspicion) of",
        r"(?:consider|considered?|think of)", r"doubtful", r"impression of",
    ),
    doubts_backward=(
        rf"(?:cannot|can not|could not|can't|may not|should not|must not) be {_SURELY}(?:excluded|ruled out|confirmed|denied)",
        rf"(?:not|hard to|difficult to) {_SURELY}(?:excluded?|ruled? out)",
        rf"(?:{_COPULA} )?not (?:clearly|definitely|well|certainly|confidently) {_SEEN}",
        rf"{_COPULA} {_ADVERB}(?:suspected|possible|questionable|questioned|considered|doubtful"
        r"|uncertain|unclear|equivocal"
        r"|favou?red|suggested|presumed|in question|conceivable|thought of|debatable|not certain|not clear|not confirmed"
        r"|borderline|inconclusive|(?:likely|probable|unlikely)(?=\W*$| (?:in|at|on|and|but|given|here|with)\b))",
        r"(?:may|might|could) be (?:present|considered|seen|possible|suspected|questioned)",
        r"not (?:certain|clear)", r"upper limits? of (?:the )?normal", r"borderline", r"to be (?:ruled out|excluded|confirmed)",
    ),
    doubts_around=(r"versus", r"vs\.?", r"\?+", r"equivocal"),
    normals=(
        r"unremarkable", r"normal(?:ly)?",
        r"within (?:the )?(?:normal|expected|usual|physiologic\w*|reference) (?:limits?|range|values?)",
        r"preserved", r"intact", r"physiologic(?:al)?(?:ly)?", r"patent", r"ordinary", r"age[- ]appropriate", r"as expected",
        r"without peculiarit\w+",
        r"negative (?:\w+ )*(?:ct|study|examination|exam|scan)",
        rf"{_COPULA} {_ADVERB}(?:open|natural|clear|midline|central|centrally|cent(?:e?red|red)|symmetric\w*|regular|smooth"
        r"|homogeneous|maintained"
        r"|satisfactory|expanded|aerated|inflated|aligned|compressible|free|unobstructed|healthy|quiet|satisfying"
        r"|in the midline)(?! of\b| from\b)",
        r"(?:open|clear|midline|natural|well (?:expanded|aerated|inflated))(?=\W*$)",
        r"natural (?:appearance|calibration|calibre|width|size)",
        r"in the midline", r"clear (?:lungs?|airways?|bases|apices|costophrenic)",
        r"(?:fully|well)[- ](?:expanded|aerated|inflated)",
        r"unimpaired", r"regular(?:ly)? (?:configured|shaped|in outline)",
    ),
    terminations=(
        r"but", r"however", r"although", r"though", r"except(?:ing)?(?: for)?", r"apart from", r"aside from", r"other than",
        r"besides",
        r"with (?:the )?exception of", r"whereas", r"while", r"nevertheless", r"nonetheless", r"which",
        r"that (?:is|are|was|were|has|have)",
        r"there (?:is|are|was|were)", r"secondary to", r"due to", r"because", r"since", r"despite", r"in spite of", r"instead",
        r"and (?:a|an|one|two|three|several|multiple|some|few|the|its|this|these|\d+|there|it|they|shows?|new|mild|moderate"
        r"|minimal|small|large)",
        r"on the other hand", r"in contrast", r"only", r"remains?", r"persists?", r"as a cause (?:of|for)", r"yet",
    ),
    alternatives=(r"or", r"nor", r"and/or"),
    additions=(r"and", r"as well as"),
    verbs=(r"is", r"are", r"was", r"were", r"has", r"have", r"had", r"shows?", r"lies?", r"measures?", r"contains?"),
    findings=(
        r"nodul\w*", r"mass(?:es)?", r"lesions?", r"effusions?", r"opacit\w*", r"opacifi\w*", r"infiltrat\w*", r"consolidat\w*",
        r"atelecta\w*",
        r"emphysem\w*", r"pneumothora\w*", r"pneumoni\w*", r"pneumomediast\w*", r"fibro(?:sis|tic|us)", r"scar(?:s|ring|red)?",
        r"sequela\w*",
        r"thicken\w*", r"calcif\w*", r"plaques?", r"atherom\w*", r"atheroscler\w*", r"hernia\w*", r"(?:lymph)?adenopath\w*",
        r"enlarg\w*", r"dilat\w*",
        r"ectasi\w*", r"ectatic", r"bronchiecta\w*", r"aneurysm\w*", r"stenos[ie]s", r"stenotic", r"thromb\w*", r"embol\w*",
        r"fractur\w*",
        r"metasta\w*", r"tumou?rs?", r"neoplas\w*", r"malignan\w*", r"carcino\w*", r"cancer\w*", r"lymphoma", r"cysts?",
        r"cystic", r"abscess\w*",
        r"cavit\w*", r"collaps\w*", r"congesti\w*", r"o?edema\w*", r"ha?emorrhag\w*", r"ha?ematoma\w*", r"ha?emothora\w*",
        r"cardiomegaly", r"fluid",
        r"collections?", r"ground[- ]?glass", r"honeycomb\w*", r"reticul\w*", r"mosaic", r"air[- ]trapping", r"bulla\w*",
        r"blebs?", r"granulom\w*",
        r"degenerat\w*", r"osteophyt\w*", r"spondyl\w*", r"scolio\w*", r"kypho\w*", r"spurs?", r"stones?", r"calcul(?:us|i)",
        r"gallstones?",
        r"steatosis", r"fatty", r"tubes?", r"catheters?", r"pacemaker\w*", r"stents?", r"devices?", r"hardware", r"ports?",
        r"wires?", r"prosthe\w*",
        r"sutures?", r"implant\w*", r"narrow\w*", r"occlu\w*", r"obstruct\w*", r"inva(?:sion|d)\w*", r"destruct\w*", r"lytic",
        r"sclero\w*", r"shift",
        r"deviat\w*", r"displace\w*", r"fistul\w*", r"diverticul\w*", r"bleed\w*", r"abnormal\w*", r"patholog\w*", r"disease\w*",
        r"infect\w*",
        r"inflamm\w*", r"injur\w*", r"lacerat\w*", r"contusion\w*", r"perforat\w*", r"ruptur\w*", r"dissect\w*", r"varic\w*",
        r"ascites",
        r"(?:hepato|spleno|hepatospleno)megaly", r"volume loss", r"free air", r"secretions?", r"plug\w*", r"impaction",
        r"spicul\w*", r"lucenc\w*",
        r"deform\w*", r"tree[- ]in[- ]bud", r"anomal\w*", r"defects?", r"erosi\w*", r"elevat\w*", r"eventration", r"osteopen\w*",
        r"osteopor\w*",
    ),
    anatomy=(
        r"lungs?", r"pulmonary", r"lob(?:e|es|ar)", r"segments?", r"apex", r"apices", r"bases?", r"trachea\w*",
        r"bronch(?:us|i|ial)", r"carina",
        r"airways?", r"pleura\w*", r"mediastin\w*", r"hil(?:a|ar|um)", r"heart", r"cardiac", r"chambers?", r"pericardi\w*",
        r"aort\w*", r"arter\w*",
        r"vein\w*", r"venous", r"vessels?", r"vascular", r"trunk", r"structures?", r"contours?", r"size", r"calib\w+", r"width",
        r"diameter", r"shape",
        r"density", r"attenuation", r"location", r"position", r"thorac\w*", r"chest", r"abdom\w*", r"liver", r"spleen",
        r"gallbladder", r"pancreas",
        r"kidneys?", r"adrenals?", r"glands?", r"thyroid", r"o?esophag\w*", r"stomach", r"bones?", r"bony", r"vertebra\w*",
        r"spine", r"ribs?", r"sternum",
        r"scapul\w*", r"clavicl\w*", r"heights?", r"corpus", r"neural", r"foramina", r"muscles?", r"soft", r"tissues?",
        r"axill\w*", r"wall", r"main",
        r"central", r"great", r"major", r"upper", r"lower", r"middle", r"bilateral\w*", r"right", r"left", r"both", r"all",
        r"other", r"visible",
        r"visuali[sz]ed", r"nodes?", r"lymph", r"fissures?", r"diaphragm\w*", r"hemidiaphragms?", r"parenchym\w*", r"contrast",
        r"study", r"sections?",
        r"limits?", r"window", r"examined", r"evaluation", r"area", r"level", r"non", r"passing", r"through", r"entering",
        r"field", r"view",
    ),
)  # fmt: skip
